"""What works where: other systems, other builds of ONNX Runtime, other execution providers, and containers."""
