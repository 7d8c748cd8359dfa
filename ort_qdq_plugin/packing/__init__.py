"""Weight bytes on their way into MatMulNBits order: no graph."""
