"""What this package relies on in ONNX Runtime: `python -m conformance.contracts`.

None of it is documented as a promise. Each contract is a small function that shows whether the installed ONNX Runtime keeps
it; they are in one module for each subject.
"""
