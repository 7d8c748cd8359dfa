"""The command line, ``ort-qdq``: one module for each command. Nothing of it is imported by the rest of the package."""
