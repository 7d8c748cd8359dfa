"""Models, drawn node by node, and the numbers in them.

- `elements`: the element types, and how their values become bytes
- `weight`: how a quantized weight is stored
- `canvas`: nodes, inputs and outputs, and the model that they make
- `draft`: a canvas with small random constants, for models of a few kilobytes

The canvas for models of gigabytes is `benchmarks.big_models.Sheet`. Tensors are packed here with NumPy, so that nothing
depends on how the `onnx` helpers write the small types.
"""
