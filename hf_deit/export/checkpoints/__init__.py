"""Checkpoints in other formats, read and written bit for bit."""
