"""A model opened without reading its weights."""
