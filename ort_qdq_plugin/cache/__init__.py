"""Prepared models on disk, which are packed once and mapped by every later load."""
