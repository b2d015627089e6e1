"""Objectives, losses, episodes and the trainer that turn solved examples into a network."""
