"""Where packed bytes live, and how ONNX Runtime gets them."""
