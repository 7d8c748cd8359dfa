"""The environment variable: the start-up file, the import hook, and activation."""
