"""What was done with a model, and what was not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from ort_qdq_plugin.reason import Reason

__all__ = ["Fusion", "Journal", "Report", "Unfused"]

_MB = 1e6
_FLOAT_BYTES = 4  # of a dequantized element


class Fusion(NamedTuple):
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


class Unfused(NamedTuple):
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
    fused: tuple[Fusion, ...] = ()
    unfused: tuple[Unfused, ...] = ()
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


class Journal:
    """What has been done with a model so far, for its report."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._seconds = dict(seconds or {})
        self._report = Report("stock")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def planned(
        self,
        *,
        fused: Iterable[Fusion],
        unfused: Iterable[Unfused],
        packed_bytes: int,
        borrowed_bytes: int,
        cache: str = "",
    ) -> None:
        """Say what is going to be done."""
        self._report = self._report._replace(
            fused=tuple(fused),
            unfused=tuple(unfused),
            packed_bytes=packed_bytes,
            borrowed_bytes=borrowed_bytes,
            cache=cache,
        )

    def finished(self, route: str, passed_through: str | None = None) -> Report:
        """The report: how the model was loaded, and why ONNX Runtime got it as it is, if it did."""
        return self._report._replace(route=route, passed_through=passed_through, seconds=dict(self._seconds))
