"""The MVG module's library; importing it loads nothing."""
