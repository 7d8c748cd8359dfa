"""Which DequantizeLinear chains become one fused node: decisions only, no weight bytes."""
