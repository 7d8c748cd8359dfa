"""Walking from every DequantizeLinear of a constant weight to what reads it, and deciding each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ort_qdq_plugin.fusion.dequantize import (
    Centred,
    Dequantized,
    Locate,
    has_constant_weight,
    is_dequantize,
    read_dequantize,
)
from ort_qdq_plugin.fusion.gather import GatherFusion, fuse_gather
from ort_qdq_plugin.fusion.matmul import MatMulFusion, fuse_product, is_product
from ort_qdq_plugin.fusion.reason import NotFusable, Reason
from ort_qdq_plugin.fusion.view import View, follow
from ort_qdq_plugin.model.graph import Location, Scope, is_standard, scopes
from ort_qdq_plugin.model.quantized import FLOAT
from ort_qdq_plugin.model.tensors import MAX_RANK

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["LeftAlone", "Matches", "match"]


_MAX_BYTES = 2**63 - 1  # what a size is reported as that no tensor can have


@dataclass(frozen=True)
class LeftAlone:
    """A DequantizeLinear that stays, with what it dequantizes on every run, in bytes."""

    dequantize: str
    weight: str
    reason: Reason
    bytes_per_run: int


@dataclass(frozen=True)
class Matches:
    """What was decided for every DequantizeLinear of a constant weight."""

    products: tuple[MatMulFusion, ...] = ()
    gathers: tuple[GatherFusion, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()

    @property
    def fusions(self) -> tuple[MatMulFusion | GatherFusion, ...]:
        """All fusions."""
        return (*self.products, *self.gathers)


def match(scope: Scope, locate: Locate, block_size: int) -> Matches:
    """Decide every DequantizeLinear of a constant weight in `scope` and its subgraphs; `block_size` as in `fuse_product`."""
    products: list[MatMulFusion] = []
    gathers: list[GatherFusion] = []
    left_alone: list[LeftAlone] = []
    context = _Context(locate, block_size, Centred())
    for inner in scopes(scope):
        for node in inner.nodes:
            if not is_dequantize(node) or not has_constant_weight(inner, node):
                continue
            decision = _Decision(inner, node, context)
            products += decision.products
            gathers += decision.gathers
            if decision.reason is not None:
                left_alone.append(_left_alone(inner, node, decision.reason))
    return Matches(tuple(products), tuple(gathers), tuple(left_alone))


@dataclass(frozen=True)
class _Context:
    """What all decisions about one model share."""

    locate: Locate
    block_size: int
    is_centred: Centred


class _Decision:
    """What becomes of one DequantizeLinear: fusions, and the reason when a reader of it needs it to stay."""

    def __init__(self, scope: Scope, node: NodeProto, context: _Context) -> None:
        self.products: list[MatMulFusion] = []
        self.gathers: list[GatherFusion] = []
        self.reason: Reason | None = None
        self._context = context
        output = node.output[0] if node.output else ""
        self._name = node.name or output
        try:
            dequantized = read_dequantize(scope, node, context.locate, context.is_centred)
            uses = list(self._uses(dequantized.view, scope, output))
        except NotFusable as refusal:
            self.reason = refusal.reason
            return
        if scope.is_output(output):
            self.reason = Reason.GRAPH_OUTPUT
        elif not uses:
            self.reason = Reason.UNUSED
        for view, use, name in uses:
            try:
                self._fuse(dequantized, view, use, name)
            except NotFusable as refusal:
                self.reason = refusal.reason if self.reason in (None, Reason.GRAPH_OUTPUT) else self.reason

    def _fuse(self, dequantized: Dequantized, view: View | NotFusable, use: Location, name: str) -> None:
        if isinstance(view, NotFusable):
            raise view
        node = use[0].nodes[use[1]]
        if is_product(node):
            context = self._context
            fusion = fuse_product(self._name, dequantized, view, use, name, context.block_size, context.locate)
            self.products.append(fusion)
        elif node.op_type == "Gather" and is_standard(node):
            self.gathers.append(fuse_gather(self._name, dequantized, view, use, name))
        else:
            raise NotFusable(Reason.CONSUMER)

    def _uses(self, view: View, scope: Scope, name: str) -> Iterator[tuple[View | NotFusable, Location, str]]:
        """(view of the weight or why there is none, node, name it reads) for all readers behind mere views."""
        waiting = [_readers(view, scope, name)]
        while waiting:
            found = next(waiting[-1], None)
            if found is None:
                waiting.pop()
                continue
            view, use, name = found
            node = use[0].nodes[use[1]]
            try:
                seen = follow(view, use[0], node, self._context.locate) if node.input and node.input[0] == name else None
            except NotFusable as refusal:
                yield refusal, use, name
                continue
            if seen is None:
                yield view, use, name
            else:
                if use[0].is_output(node.output[0]):
                    yield NotFusable(Reason.GRAPH_OUTPUT), use, name
                waiting.append(_readers(seen, use[0], node.output[0]))


def _readers(view: View, scope: Scope, name: str) -> Iterator[tuple[View, Location, str]]:
    return ((view, use, name) for use in dict.fromkeys(scope.uses(name)))


def _left_alone(scope: Scope, node: NodeProto, reason: Reason) -> LeftAlone:
    tensor, scales = scope.constant(node.input[0]), scope.constant(node.input[1])
    dims = tensor.dims if tensor is not None and len(tensor.dims) <= MAX_RANK else (0,)
    element_bytes = 4 if scales is None or scales.data_type == FLOAT else 2
    bytes_per_run = min(math.prod(max(size, 0) for size in dims) * element_bytes, _MAX_BYTES)
    return LeftAlone(node.name or node.output[0], node.input[0], reason, bytes_per_run)
