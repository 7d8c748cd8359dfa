"""Loads that meet a full disk, a limit, a signal or a file that changes: `python -m conformance.faults`.

They are in one module for each kind of fault.
"""
