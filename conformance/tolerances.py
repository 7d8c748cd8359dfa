"""How far from exact right results may be: of each type, at each accuracy level, on each kind of processor.

Stock ONNX Runtime's own kernels decide it. Errors are max|a-b|/max|a|.
"""

from ort_qdq_plugin.model.releases import installed
from ort_qdq_plugin.system.platform import host

__all__ = ["KEEPS_FLOAT16", "largest_error"]

_LARGEST = {
    ("float", 0): 1e-5, ("float16", 0): 2e-3, ("bfloat16", 0): 2e-2,
    ("float", 4): 2e-2, ("float16", 4): 2e-2, ("bfloat16", 4): 3e-2,
}  # fmt: skip
"""A bfloat16 weight has 8 bits of precision once dequantized, which the fused kernel never loses."""

_LARGEST_ON_ARM = {("float16", 0): 2e-2}
"""ONNX Runtime 1.32's kernels for products of float16 add in float16 there, and so do its unfused ones. For weights of 4 and
8 bits the error is 3e-3 for K=64 and 7e-3 to 9e-3 for K=576 and K=2048; on x86 it is 3e-4 for each K, as
`conformance.platforms.kernels` shows with stock ONNX Runtime alone. What that fuses itself has the same bits."""


KEEPS_FLOAT16 = installed() == (1, 29)
"""This release alone computes in float16 where others do in float: its own Gemm adds up in it, and its Add adds biases."""

_LARGEST_KEEPING_FLOAT16 = {("float16", 0): 1e-2}


def largest_error(precision: str, level: int) -> float:
    """The largest error of "float", "float16" or "bfloat16" results at accuracy level 0 or 4."""
    limits = _LARGEST | (_LARGEST_KEEPING_FLOAT16 if KEEPS_FLOAT16 else {}) | (_LARGEST_ON_ARM if host.is_arm() else {})
    return limits[precision, level]
