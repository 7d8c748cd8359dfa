"""What others can check this package by: its patterns, its loads, and what it relies on."""
