"""MirrorFS: an encrypted, mirrored filesystem kept as one log in three places."""

__version__ = "0.1.0"
