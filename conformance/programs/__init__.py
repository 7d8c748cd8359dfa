"""Unmodified programs from the Python package index, with and without the variable that switches this package on."""
