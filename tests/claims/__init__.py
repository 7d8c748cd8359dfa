"""What the documentation says, and whether it is so: a module for each page, a test for what some of its words say.

The code on the pages runs in `test_code.py`, and what only a measurement shows is in `test_measured.py`.
"""
