"""Everything that touches what ONNX Runtime does not promise: checked by ``python -m conformance.contracts``."""
