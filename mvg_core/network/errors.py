"""Errors of the network package."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the network that should take its weights."""
