"""Why a DequantizeLinear of a constant weight was left alone."""

from __future__ import annotations

from enum import Enum

__all__ = ["Reason"]


class Reason(Enum):
    """One sentence each; ``str(reason)`` is the sentence."""

    OVERRIDABLE = "An operand is also a graph input, so the caller of run() may replace it."
    NOT_CONSTANT = "The scales or the zero points are computed at run time."
    WEIGHT_TYPE = "The weight's type is not a 2-, 4- or 8-bit integer."
    SCALE_TYPE = "The scales are neither float, float16 nor bfloat16."
    PRODUCT_TYPE = "The product is computed in a type that no fused kernel takes."
    RANK = "The weight is not a matrix."
    BATCHED = "The weight is a stack of matrices, one per batch."
    RESHAPE = "A Reshape on the way to the product splits an axis of the stored weight, or its shape is not constant."
    INTERLEAVED = "The axes of the stored weight that make up K and N are interleaved."
    BLOCKS_ALONG_N = "Scales vary along K index by index, or blocks lie along N: the fused operator needs blocks along K."
    BLOCK_SIZE = "No power of two from 16 to 256 divides the block size at a cost below twice the operand's bytes."
    CONSUMER = "The result feeds something other than a matrix product or a Gather."
    LEFT_OPERAND = "The weight is the left operand of the product, and the right one's rank is not known."
    TRANSPOSED_ACTIVATION = "The product transposes its other operand, whose rank is not known, or batches its axes."
    ACTIVATION_RANK = "The weight has leading axes, and the rank of the product's other operand is not known."
    INTEGER_KERNEL = "The activations are quantized too: ONNX Runtime's integer kernels apply."
    GATHER = "GatherBlockQuantized takes tables of 4-bit or unsigned 8-bit rows in blocks along the last axis."
    ALPHA = "The product's alpha is so large or so small that scales times alpha may leave their type's range."
    UNUSED = "Nothing reads the result."
    GRAPH_OUTPUT = "The result is an output of the graph."
    INVALID = "The operands do not fit together; ONNX Runtime decides what to say."

    def __str__(self) -> str:
        return self.value
