"""Loads that meet a full disk, a limit, a signal or a file that changes: `python -m conformance.faults`.

Each fault is injected for real into a process of its own, and judged by what stock ONNX Runtime does in the same situation.
They are in one module for each kind of fault.
"""
