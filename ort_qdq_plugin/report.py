"""What was done with a model; what was not, and why."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["FusedWeight", "Reason", "Report", "UnfusedWeight"]

_MB = 1e6
_FLOAT_BYTES = 4  # of a dequantized element


class Reason(Enum):
    """Why a DequantizeLinear of a constant weight was left alone. ``str(reason)`` is the sentence."""

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
    OPSET = "A node on the way is not as the model's opset has it, or no such operator is known; ONNX Runtime decides."

    def __str__(self) -> str:
        return self.value


class FusedWeight(NamedTuple):
    """A node that became a fused low-bit operator.

    Attributes:
        node: The node that was replaced, by its name or its output's.
        dequantize: The DequantizeLinear that fed it.
        kind: Its operator type.
        k: Rows of the weight.
        n: Columns of the weight.
        bits: Of an element.
        block_size: Elements along K that share a scale.
        layout: "K-major" (stored [K, N]) or "N-major" (stored [N, K]).
        packed_bytes: Of its operands that went into the packed buffer. What several fusions share counts in each.
        borrowed_bytes: Of its operands that are used where the model stores them.
        stored_bytes: What the model stores of its operands. What several fusions share counts in each.
        has_bias: Whether the fused node adds a bias of its own.
    """

    node: str
    dequantize: str
    kind: str
    k: int
    n: int
    bits: int
    block_size: int
    layout: str
    packed_bytes: int
    borrowed_bytes: int
    stored_bytes: int
    has_bias: bool


class UnfusedWeight(NamedTuple):
    """A DequantizeLinear of a constant weight that stays.

    Attributes:
        dequantize: The node, by its name or its output's.
        weight: What it dequantizes.
        reason: Why it stays.
        shape: Of the weight, as it is stored; (0,) where that is no shape of a tensor.
        bits: Of an element; 0 for a type without a fixed size.
        block_size: Elements that share a scale along the node's axis; 0 if the node has no blocks.
        stored_bytes: What the model stores of the weight, its scales and its zero points.
        bytes_per_run: What it dequantizes on every run, in bytes; 0 if ONNX Runtime never runs the node.
    """

    dequantize: str
    weight: str
    reason: Reason
    shape: tuple[int, ...]
    bits: int
    block_size: int
    stored_bytes: int
    bytes_per_run: int


class Report(NamedTuple):
    """What became of a model.

    Attributes:
        route: "borrowed" (ONNX Runtime uses our buffers in place), "by path" (it maps the same files itself), "shared" (it
            maps those files together with pre-packed weights), "stock" (it
            loads the untouched model), "export" (the fused model was written) or "inspect" (no session was made).
        passed_through: Why the whole model went to stock ONNX Runtime; None if it did not.
        fused: What was fused.
        unfused: What was not, and why.
        cache: "made" (the model was packed into an entry of the cache), "used" (it was found there) or "" (no cache).
        shared_bytes: Of ONNX Runtime's pre-packed weights that this process shares with others by mapping them.
        packed_bytes: Of all fused nodes' operands in the packed buffer, each counted once.
        borrowed_bytes: Of those that are used where the model stores them, each counted once.
        seconds: By stage: "cache" (finding and writing an entry), "open", "match", "plan", "pack", "assemble", "share"
            (pre-packing for other processes) and "create session", which is ONNX Runtime's own work.
    """

    route: str
    passed_through: str | None = None
    fused: tuple[FusedWeight, ...] = ()
    unfused: tuple[UnfusedWeight, ...] = ()
    packed_bytes: int = 0
    borrowed_bytes: int = 0
    cache: str = ""
    shared_bytes: int = 0
    seconds: Mapping[str, float] = MappingProxyType({})

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON; reasons as their sentences."""
        plain = self._asdict()
        plain["fused"] = [entry._asdict() for entry in self.fused]
        plain["unfused"] = [{**entry._asdict(), "reason": str(entry.reason)} for entry in self.unfused]
        plain["seconds"] = dict(self.seconds)
        return plain

    def __str__(self) -> str:
        return "\n".join([self.summary(), *self._fused_lines(), *self._unfused_lines()])

    def summary(self) -> str:
        """One line: how it was loaded, what was fused, what that saves, bytes and seconds."""
        left = f", {len(self.unfused)} left" if self.unfused else ""
        if self.passed_through is not None:
            return f"stock ONNX Runtime: {self.passed_through}{left}"
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        in_float = sum(_FLOAT_BYTES * entry.k * entry.n for entry in self.fused)
        megabytes = (
            f"{self.packed_bytes / _MB:.1f} MB packed and {self.borrowed_bytes / _MB:.1f} MB in place instead of "
            f"{in_float / _MB:.1f} MB in float"
        )
        bytes_held = megabytes if self.fused else "its own files handed over without a copy"
        route = {"made": f"{self.route}, cached", "used": f"{self.route} from the cache"}.get(self.cache, self.route)
        return f"{route}: {len(self.fused)} fused{left}, {bytes_held}" + (f"; {stages}" if stages else "")

    def _fused_lines(self) -> list[str]:
        return [
            f"  fused   {entry.node}: {entry.kind} K={entry.k} N={entry.n}, {entry.bits} bits, block {entry.block_size}, "
            f"{entry.layout}, {'packed' if entry.packed_bytes else 'in place'}{', with bias' if entry.has_bias else ''}"
            for entry in self.fused
        ]

    def _unfused_lines(self) -> list[str]:
        return [
            f"  unfused {entry.dequantize}: {entry.reason} ({entry.bytes_per_run / _MB:.1f} MB dequantized per run)"
            for entry in self.unfused
        ]
