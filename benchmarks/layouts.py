"""Ways of writing a weight that stock ONNX Runtime leaves unfused, each with the same numbers in fused nodes, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from benchmarks.big_models import BigWeight, Sheet
from conformance.drawing.elements import MS, Dim

__all__ = ["LAYOUTS", "TABLE", "Draw", "Layout"]

Draw = Callable[[Sheet, str, BigWeight], str]
"""Adds one product of a value with a weight (or, where a layout shares it, two); the name of the result."""

TABLE = (32064, 3072)
"""Rows and columns of an embedding."""

_CHAIN, _SQUARE = (3072, 8192, 3072, 8192, 3072), (4096,) * 6
_ODD = (3072, 9216, 3072, 9216, 3072)  # multiples of 48 and 96
_WIDE = 4000  # narrower and wider sizes stay apart in small layouts
_ALPHA, _BETA = 0.5, 2.0
_N_MAJOR = BigWeight(n_major=True)


def _turned(s: Sheet, value: str) -> str:
    return s.node("Transpose", [value], perm=[1, 0])


def _blocked(s: Sheet, x: str, w: BigWeight) -> str:
    blocks = w.k // w.block
    dense = s.dequantize(w, s.operands(w, (w.n, blocks, w.block), (w.n, blocks, 1)), 2)
    return s.node("MatMul", [x, _turned(s, s.node("Reshape", [dense, s.small(f"{w.name}.shape", np.array([w.n, -1]))]))])


def _lead_one(s: Sheet, x: str, w: BigWeight) -> str:
    return s.node("MatMul", [x, s.dequantize(w, s.operands(w, (1, w.k, w.n), (1, w.k // w.block, w.n)), 1)])


def _bias(s: Sheet, w: BigWeight, factor: float = 1.0) -> str:
    values = np.random.default_rng([*w.name.encode()]).standard_normal(w.n, dtype=np.float32)
    return s.small(f"{w.name}.bias", values * np.float32(factor))


def _shared(s: Sheet, x: str, w: BigWeight) -> str:
    dense = s.dequantized(w)
    return s.node("MatMul", [s.node("MatMul", [x, dense]), dense])


def _shared_twin(s: Sheet, x: str, w: BigWeight) -> str:
    operands = s.fused_operands(w)
    return s.fused(s.fused(x, w, operands), w, operands)


def _gather(s: Sheet, ids: str, w: BigWeight) -> str:
    return s.node("Gather", [s.dequantized(w), ids])


def _gather_twin(s: Sheet, ids: str, w: BigWeight) -> str:
    table, scales, zero_points = s.operands(w)
    inputs, axes = [table, ids, scales, zero_points], dict[str, Any](gather_axis=0, quantize_axis=1)
    return s.node("GatherBlockQuantized", inputs, domain=MS, block_size=w.block, bits=w.kind.bits, **axes)


def _twin(block: int = 0) -> Draw:
    return lambda s, x, w: s.fused(x, w, s.fused_operands(w, block, scale="float"), block=block)


@dataclass(frozen=True)
class Layout:
    """A way of writing a weight, and the fused node that it stands for."""

    name: str
    product: Draw
    twin: Draw = field(default_factory=_twin)  # the same of fused nodes
    weight: BigWeight = field(default_factory=BigWeight)  # block 0 is K as one block
    sizes: tuple[int, ...] = _CHAIN  # widths of a chain of products, from each to the next
    feed: str = "batch"  # what the model takes: "rows" [m, K], "batch" [b, s, K], "column" [K, 1] or "ids" of a table
    each: int = 1  # fusions for each weight
    in_branch: bool = False  # whether the products stand in an If, their weights outside
    declared: bool = True  # whether the model states the shapes of what lies between products, as exporters do

    @property
    def fusions(self) -> int:
        return self.each * (len(self.sizes) - 1)

    @property
    def small(self) -> Layout:
        # Multiples of every block size used.
        small = (1024, 192) if self.feed == "ids" else tuple(192 if size < _WIDE else 384 for size in self.sizes)
        return replace(self, sizes=small)

    def write(self, path: Path, product: Draw) -> None:
        """Write the model, of one of the two kinds of products."""
        s = Sheet(path)
        x = s.input("x", *((["s"], "int64") if self.feed == "ids" else (self._shape(self.sizes[0]),)))
        for index, size in enumerate(pairwise(self.sizes)):
            # A table has a row for each id: what a product calls N.
            n, k = size if self.feed == "ids" else size[::-1]
            x = product(s, x, replace(self.weight, name=f"w{index}", k=k, n=n, block=self.weight.block or k))
            if self.declared and not self.in_branch and index < len(self.sizes) - 2:
                s.declare(x, self._shape(n))
        end = self._shape(self.sizes[-1])
        if self.in_branch:
            then = s.branch("then", x, end)
            other = s.branch("else", s.node("Neg", ["x"]), end)
            x = s.node("If", [s.input("condition", [], "bool")], then_branch=then, else_branch=other)
        s.output(x, end)
        s.save()

    def _shape(self, width: int) -> list[Dim]:
        shapes: dict[str, list[Dim]] = {"batch": ["b", "s", width], "column": [width, 1]}
        return shapes.get(self.feed, ["m", width])


_LEFT: tuple[Draw, Draw] = (
    lambda s, x, w: s.node("MatMul", [s.dequantized(w), x]),
    lambda s, x, w: _turned(s, _twin()(s, _turned(s, x), w)),
)
_GEMM: tuple[Draw, Draw] = (
    lambda s, x, w: s.node("Gemm", [x, s.dequantized(w), _bias(s, w)], alpha=_ALPHA, beta=_BETA),
    lambda s, x, w: s.fused(x, w, s.fused_operands(w, alpha=_ALPHA), bias=_bias(s, w, _BETA)),
)


def _trans_b(op: str, domain: str = "") -> Draw:
    return lambda s, x, w: s.node(op, [x, s.dequantized(w)], domain=domain, transB=1)


def _cast(s: Sheet, x: str, w: BigWeight) -> str:
    return s.node("MatMul", [x, s.node("Cast", [s.dequantized(w)], to=TensorProto.FLOAT)])


def _then(op: str, product: Draw) -> Draw:
    """A product that another node takes, with x if that takes two."""
    return lambda s, x, w: s.node(op, [*[x] * (op == "Add"), product(s, x, w)])


LAYOUTS = (
    Layout("DQ(axis 1), Transpose, MatMul", Sheet.product, weight=_N_MAJOR),
    Layout("the same, int4", Sheet.product, weight=replace(_N_MAJOR, element="int4")),
    Layout("DQ(axis 1), Gemm(transB=1)", _trans_b("Gemm"), weight=_N_MAJOR, feed="rows"),
    Layout("DQ(axis 1), FusedMatMul(transB=1)", _trans_b("FusedMatMul", MS), weight=_N_MAJOR),
    Layout("DQ float16, Cast, MatMul", _cast, weight=BigWeight(scale="float16")),
    Layout("[N, blocks, block], Reshape, Transpose, MatMul", _blocked, weight=_N_MAJOR),
    Layout("weight [1, K, N]", _lead_one),
    Layout("weight [1, K, N], no shapes declared", _lead_one, declared=False),
    Layout("Gemm(alpha, beta)", *_GEMM, feed="rows"),
    Layout("one DQ, two MatMuls", _shared, _shared_twin, sizes=_SQUARE[:4], each=2),
    Layout("MatMul, Relu", _then("Relu", Sheet.product), _then("Relu", _twin())),
    Layout("block 48", Sheet.product, _twin(16), BigWeight(block=48), _ODD),
    Layout("block 96", Sheet.product, _twin(32), BigWeight(block=96), _ODD),
    Layout("K as one block", Sheet.product, _twin(32), BigWeight(block=0)),
    Layout("weight on the left", *_LEFT, weight=_N_MAJOR, feed="column"),
    Layout("weight on the left, no shapes declared", *_LEFT, weight=_N_MAJOR, feed="column", declared=False),
    Layout("Gather, one id", _gather, _gather_twin, _N_MAJOR, TABLE, "ids"),
    Layout("2-D MatMul, Add of a residual", _then("Add", Sheet.product), _then("Add", _twin()), sizes=_SQUARE, feed="rows"),
    Layout("in an If, weights outside", Sheet.product, in_branch=True),
    Layout("the same, DQ(axis 1), Transpose, MatMul", Sheet.product, weight=_N_MAJOR, in_branch=True),
)
