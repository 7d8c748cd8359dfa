"""What was done with a model, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ort_qdq_plugin.fusion.reason import Reason

__all__ = ["Fusion", "Report", "Unfused"]

_MB = 1e6
_FLOAT_BYTES = 4  # of a dequantized element


@dataclass(frozen=True)
class Fusion:
    """A node that became a fused low-bit operator.

    `node`: the node replaced (its output where it has no name); `dequantize`: the DequantizeLinear that fed it; `kind`: its
    operator type. `k`, `n`: rows and columns of the weight; `block_size`: elements along K that share a scale. `layout`:
    "K-major" or "N-major". `packed_bytes` went into the packed buffer, `borrowed_bytes` are used where the model stores them
    (operands that several fusions share count in each).
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
    has_bias: bool


@dataclass(frozen=True)
class Unfused:
    """A DequantizeLinear of a constant weight that stays: it dequantizes `bytes_per_run` bytes on every run."""

    dequantize: str
    weight: str
    reason: Reason
    bytes_per_run: int


@dataclass(frozen=True)
class Report:
    """What became of a model.

    `route`: "borrowed" (ONNX Runtime uses our buffers in place), "by path" (it maps the same files itself), "stock" (the
    untouched model) or "inspect" (no session was made). `passed_through`: why the whole model went to stock ONNX Runtime.
    `packed_bytes` and `borrowed_bytes` count every operand of fused nodes once. `seconds`: per stage, "open", "match",
    "plan", "pack" and "hand over" (ONNX Runtime's own initialization included).
    """

    route: str
    passed_through: str | None = None
    fused: tuple[Fusion, ...] = ()
    unfused: tuple[Unfused, ...] = ()
    packed_bytes: int = 0
    borrowed_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON; reasons as their sentences."""
        plain = asdict(self)
        plain["seconds"] = dict(self.seconds)
        for entry, unfused in zip(plain["unfused"], self.unfused, strict=True):
            entry["reason"] = str(unfused.reason)
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
        return f"{self.route}: {len(self.fused)} fused{left}, {bytes_held}" + (f"; {stages}" if stages else "")

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
