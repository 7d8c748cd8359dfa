"""What became of each quantized weight of a model: a fused operator, or the reason why it stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ort_qdq_plugin.values import ByFields, Sentence

__all__ = ["HINTS", "FusedWeight", "Layout", "Reason", "UnfusedWeight"]

_MB = 1e6
Layout = Literal["K-major", "N-major"]


class Reason(Sentence):
    """Why what dequantizes a constant weight was left alone. ``str(reason)`` is the sentence."""

    OVERRIDABLE = "An operand is also a graph input, so the caller of run() may replace it."
    NOT_CONSTANT = "The scales or the zero points are computed at run time."
    COMPUTED = "An operand is computed from constants in a way that is not followed: ONNX Runtime does that at load."
    WEIGHT_TYPE = "The weight's type is not a 2-, 4- or 8-bit integer."
    SCALE_TYPE = "The scales are neither float, float16 nor bfloat16."
    PRODUCT_TYPE = "The product is computed in a type that no fused kernel takes."
    RANK = "The weight is not a matrix."
    BATCHED = "The weight is a stack of matrices: 256 are fused at most, on the right of a product whose batches are known."
    RESHAPE = "A Reshape on the way to the product tears apart what shares a scale, or its shape is not constant."
    INTERLEAVED = "The axes of the stored weight that make up K and N are interleaved."
    ROUNDED = "A Cast on the way makes integers, booleans or 8-bit floats of the dequantized values."
    BLOCKS_ALONG_N = "Scales vary along K index by index, or blocks lie along N: the fused operator needs blocks along K."
    BLOCK_SIZE = "No power of two from 16 to 256 divides the block size at a cost below twice the operand's bytes."
    SLOWER = "At this accuracy level the fused operator dequantizes 8-bit weights in every run, and more slowly."
    CONVOLUTION = "The convolution is as fast or faster with its weight in float than as a product."
    PART = "Only a part is read: one that is not made of whole blocks, or takes elements more than once, or none."
    JOINED = "It is joined with what is no dequantized constant, or is stored, scaled or seen in another way."
    FACTOR = "A Mul or a Div behind it has neither one number for each row of the weight nor one for each column."
    EINSUM = "The Einsum is no product of an activation and the weight, or repeats or adds up what only one of them has."
    SLOWER_THAN_FLOAT = (
        "At this accuracy level the fused operator dequantizes 8-bit weights in every run, ONNX Runtime once."
    )
    OTHER_STEPS = "It is dequantized in other steps than a Cast of integers, a Sub of zero points and a Mul by scales."
    SCALE_SHAPE = "Scales or zero points are neither one for all, nor one for each index of an axis, nor one for each block."
    FRACTIONAL = "The zero points are no integers of the weight's type: the fused operator takes no others."
    CONSUMER = "The result feeds something other than a matrix product or a Gather."
    LEFT_OPERAND = "The weight is the left operand of the product, and the right one's rank is not known."
    TRANSPOSED_ACTIVATION = "The product transposes its other operand, whose rank is not known, or batches its axes."
    MOVED_INT8 = "The activation is quantized to int8 and would be moved: ONNX Runtime makes an invalid node of that."
    ACTIVATION_RANK = "The weight has leading axes, and the rank of the product's other operand is not known."
    INTEGER_KERNEL = "The activations are quantized too: ONNX Runtime's integer kernels apply."
    FOLDED = "The result is quantized again: ONNX Runtime computes it once, when it loads the model."
    EXPERTS = "No mixture of experts that ONNX Runtime quantizes on the CPU computes the same from these weights."
    GATHER = "No form of a lookup takes it: one along a first axis, with a scale for all, rows, columns, or blocks in rows."
    SMALL_TABLE = "The table has so few rows that many lookups in a run would take longer than dequantizing all of it."
    MEMORY = "Its values in float would take more memory than Options.dequantize_once allows."
    UNUSED = "Nothing reads the result."
    GRAPH_OUTPUT = "The result is an output of the graph."
    INVALID = "The operands do not fit together: ONNX Runtime reports what is wrong."
    OPSET = "A node on the way is not as the model's opset has it, or is no known operator: ONNX Runtime decides."


HINTS: Mapping[Reason, str] = {
    Reason.OVERRIDABLE: "Remove weights, scales and zero points from the graph's inputs.",
    Reason.NOT_CONSTANT: "Fold scales and zero points into constants when exporting.",
    Reason.COMPUTED: "Fold constants before saving the model.",
    Reason.WEIGHT_TYPE: "Quantize weights to 2, 4 or 8 bits.",
    Reason.SCALE_TYPE: "Export scales in float, float16 or bfloat16.",
    Reason.PRODUCT_TYPE: "Export the product in float or float16.",
    Reason.RESHAPE: "Export with constant shapes, and with the weight in the shape that the product takes.",
    Reason.INTERLEAVED: "Store the weight with the axes of K side by side, and those of N.",
    Reason.BLOCKS_ALONG_N: "Quantize per column, or in blocks along K: axis 0 of a [K, N] weight, axis 1 of an [N, K] one.",
    Reason.BLOCK_SIZE: "Quantize in blocks of 16, 32, 64, 128 or 256 elements.",
    Reason.SLOWER: "Accuracy level 4, or 4 bits.",
    Reason.SLOWER_THAN_FLOAT: "Accuracy level 4, or 4 bits.",
    Reason.OTHER_STEPS: "Export it with DequantizeLinear.",
    Reason.SCALE_SHAPE: "Quantize per tensor, per channel, or in blocks along K.",
    Reason.FRACTIONAL: "Quantize with integers as zero points, or without any.",
    Reason.LEFT_OPERAND: "State shapes in the model: run shape inference before saving it.",
    Reason.TRANSPOSED_ACTIVATION: "State shapes in the model: run shape inference before saving it.",
    Reason.MOVED_INT8: "Quantize activations to uint8.",
    Reason.ACTIVATION_RANK: "State shapes in the model: run shape inference before saving it.",
    Reason.MEMORY: 'Options(dequantize_once="always").',
    Reason.UNUSED: "Remove the node.",
    Reason.OPSET: "Export with opset 21 or newer for 4 bits and blocks, 23 for output_dtype, 25 for 2 bits.",
}
"""Reason -> what would help. Others need no help, or there is none."""


class FusedWeight(ByFields):
    """A node that became a fused low-bit operator, or a lookup that dequantizes no more than it reads.

    Attributes:
        node: The node that was replaced, by its name or its output's.
        dequantize: What fed it: a DequantizeLinear, or the Mul where dequantizing is written out (as Cast, Sub and Mul).
        kind: Its operator type.
        k: Rows of the weight as the product sees it, [K, N]: one for each input of the product.
        n: Columns of the weight, one for each output.
        bits: Of an element of the fused node.
        block_size: Elements along K that share a scale, in the fused node.
        layout: "K-major" (stored [K, N]) or "N-major" (stored [N, K]).
        packed_bytes: Of its operands that went into the packed buffer. What several fusions share counts in each.
        borrowed_bytes: Of its operands that are used where the model stores them.
        stored_bytes: What the model stores of the weight, its scales and its zero points, and of other operands. What
            several fusions share counts in each; in `Report.stored_bytes` it counts once.
        has_bias: Whether the fused node also adds a bias.
        stored_bits: Of an element as the model stores it: 2 where the fused node has 4, else the same.
        form: The weight in words: its type and shape, what shares a scale, and the operators that it is behind.
        weight: What `dequantize` dequantizes.
    """

    node: str
    dequantize: str
    kind: str
    k: int
    n: int
    bits: int
    block_size: int
    layout: Layout
    packed_bytes: int
    borrowed_bytes: int
    stored_bytes: int
    has_bias: bool
    stored_bits: int
    form: str = ""
    weight: str = ""


class UnfusedWeight(ByFields):
    """What dequantizes a constant weight and no fused operator replaces, or not for all that read its result.

    Vectors, as biases and scales of norms are, are no weights.

    Attributes:
        dequantize: The node, by its name or its output's: a DequantizeLinear, or the Mul where dequantizing is written out.
        weight: What it dequantizes.
        reason: Why that is so.
        shape: Of the weight, as it is stored; (0,) if the model has no valid shape for it.
        bits: Of an element; 0 for a type without a fixed size.
        block_size: Elements that share a scale along the node's axis; 0 if the node has no blocks.
        stored_bytes: What the model stores of the weight, its scales and its zero points.
        bytes_per_run: What it dequantizes on every run, in bytes. ONNX Runtime dequantizes once for each reader, also for
            none; 0 if it never does, and if its values are computed once.
        bytes_added: Of its values, if they are computed once, when the model is loaded: they are in the packed buffer, and
            the node is gone. 0 if they are not.
        bytes_folded: Of its values, if ONNX Runtime itself computes them once, when it loads the model, as it does where
            dequantizing is written out; else 0.
        form: The weight in words, as in FusedWeight.
    """

    dequantize: str
    weight: str
    reason: Reason
    shape: tuple[int, ...]
    bits: int
    block_size: int
    stored_bytes: int
    bytes_per_run: int
    bytes_added: int = 0
    bytes_folded: int = 0
    form: str = ""

    @property
    def cost(self) -> str:
        """What it costs, in words."""
        nbytes = self.bytes_added or self.bytes_folded or self.bytes_per_run
        when = "once, at load" if self.bytes_added else "once, at load, by ONNX Runtime" if self.bytes_folded else "per run"
        return f"{nbytes / _MB:.1f} MB dequantized {when}"

    @property
    def hint(self) -> str:
        """What would help, as the reason tells; "" where nothing has to."""
        return HINTS.get(self.reason, "")
