"""Prepared models on disk: packed once, mapped ever after. A warm start imports this and nothing of matching and packing."""
