"""What this package relies on in ONNX Runtime: `python -m conformance.contracts`.

None of it is documented as a promise. Each public function of `buffers`, `options`, `sessions` and `kernels` is a contract:
given a folder of its own, it shows whether the installed ONNX Runtime keeps what its docstring says. It returns what it saw,
or raises `BrokenError`.
"""
