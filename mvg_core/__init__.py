"""Medical Vision Generalist: one network that does imaging tasks from solved examples."""

__version__ = "0.1.0"
