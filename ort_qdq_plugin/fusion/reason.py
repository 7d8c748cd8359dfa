"""Why a DequantizeLinear of a constant weight was left alone."""

from __future__ import annotations

from enum import Enum

__all__ = ["NotFusable", "Reason"]


class Reason(Enum):
    """One sentence each; `str(reason)` is the sentence."""

    OVERRIDABLE = "An operand is also a graph input, so the caller of run() may replace it."
    NOT_CONSTANT = "The scales or the zero points are computed at run time."
    WEIGHT_TYPE = "The weight's type is not a 2-, 4- or 8-bit integer."
    SCALE_TYPE = "MatMulNBits has no kernel for this type of scales."
    OUTPUT_TYPE = "The dequantized type differs from that of the scales."
    RANK = "The weight is not a matrix."
    BLOCKS_ALONG_N = "Scales vary along K only within one column, or blocks lie along N: MatMulNBits needs blocks along K."
    BLOCK_SIZE = "MatMulNBits takes block sizes that are powers of two from 16 to 256."
    CONSUMER = "The result feeds something other than a matrix product."
    LEFT_OPERAND = "The weight is the left operand of the product."
    TRANSPOSE = "The weight is transposed in a way that does not swap K and N."
    PRODUCT_ATTRIBUTES = "The product transposes its left operand, scales its result or batches the weight's axes."
    BIAS = "Gemm's bias is not a constant of shape [N]."
    INTEGER_KERNEL = "The activations are quantized too: ONNX Runtime's integer kernels apply."
    UNUSED = "Nothing reads the result."
    FUNCTION = "It stands in the body of a model-local function."
    INVALID = "The operands do not fit together; ONNX Runtime decides what to say."

    def __str__(self) -> str:
        return self.value


class NotFusable(Exception):
    """Raised inside matching; never leaves it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason
