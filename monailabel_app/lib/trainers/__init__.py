"""What a client can have trained."""
