"""Walking from every DequantizeLinear of a constant weight to what reads it, and deciding each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.decision import NotFusable
from ort_qdq_plugin.fusion.dequantize import (
    Centred,
    Dequantized,
    Locate,
    has_constant_weight,
    is_dequantize,
    read_dequantize,
)
from ort_qdq_plugin.fusion.gather import fuse_gather, is_gather
from ort_qdq_plugin.fusion.kind import Fusion, FusionSettings, Site
from ort_qdq_plugin.fusion.matmul import fuse_product, is_product
from ort_qdq_plugin.fusion.view import View, follow
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, bits_of
from ort_qdq_plugin.model.graph import NodeRef, Scope, scopes
from ort_qdq_plugin.model.messages import attribute
from ort_qdq_plugin.model.tensors import MAX_RANK, shape_of, tensor_bytes
from ort_qdq_plugin.report import Reason, UnfusedWeight

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["Matches", "match"]

# ONNX Runtime's integer kernels take the weight as it is, and it removes what nothing reads.
_NEVER_RUN = (Reason.INTEGER_KERNEL, Reason.UNUSED)
_MAX_BYTES = 2**63 - 1  # reported of a size that no tensor can have


class Matches(NamedTuple):
    """What was decided for every DequantizeLinear of a constant weight."""

    fusions: tuple[Fusion, ...] = ()
    unfused: tuple[UnfusedWeight, ...] = ()


def match(scope: Scope, locate: Locate, settings: FusionSettings) -> Matches:
    """Decide every DequantizeLinear of a constant weight in a model.

    Shapes, types and attributes decide. Of the bytes only zero points are read, to see whether they are needed at all, and
    the few numbers of constant shapes, axes and small biases.

    Args:
        scope: Of the model's main graph.
        locate: Finds the bytes of a constant.
        settings: What is asked of fused nodes.
    """
    fusions: list[Fusion] = []
    unfused: list[UnfusedWeight] = []
    context = _Context(locate, settings, Centred())
    for inner in scopes(scope):
        for node in inner.nodes:
            if not is_dequantize(node) or not has_constant_weight(inner, node):
                continue
            decision = _WeightMatch(inner, node, context)
            fusions += decision.fusions
            if decision.reason is not None:
                unfused.append(_unfused(inner, node, decision.reason))
    return Matches(tuple(fusions), tuple(unfused))


class _Context(NamedTuple):
    """What all decisions about one model share."""

    locate: Locate
    settings: FusionSettings
    is_centred: Centred


class _Use(NamedTuple):
    """A node that reads the weight behind mere views: how it sees it, or why nobody can tell, and under what name."""

    view: View | NotFusable
    location: NodeRef
    name: str

    @property
    def node(self) -> NodeProto:
        scope, index = self.location
        return scope.nodes[index]


class _WeightMatch:
    """What becomes of one DequantizeLinear: fusions, and the reason if one of its readers needs it to stay."""

    def __init__(self, scope: Scope, node: NodeProto, context: _Context) -> None:
        self.fusions: list[Fusion] = []
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
        for use in uses:
            try:
                self.fusions.append(self._fused(dequantized, use))
            except NotFusable as refusal:
                self.reason = refusal.reason if self.reason in (None, Reason.GRAPH_OUTPUT) else self.reason

    def _fused(self, dequantized: Dequantized, use: _Use) -> Fusion:
        if isinstance(use.view, NotFusable):
            raise use.view
        node, context = use.node, self._context
        output = node.output[0] if node.output else ""
        site = Site(
            dequantize=self._name,
            weight=use.name,
            kind=node.op_type,
            name=node.name or output,
            output=output,
            replaced=(use.location,),
        )
        if is_product(node):
            return fuse_product(site, dequantized, use.view, settings=context.settings, locate=context.locate)
        if is_gather(node):
            return fuse_gather(site, dequantized, use.view)
        raise NotFusable(Reason.CONSUMER)

    def _uses(self, view: View, scope: Scope, name: str) -> Iterator[_Use]:
        """All readers of a value, and of mere views of it."""
        waiting = [_readers(view, scope, name)]
        while waiting:
            found = next(waiting[-1], None)
            if found is None:
                waiting.pop()
                continue
            view, where, name = found
            scope, index = where
            node = scope.nodes[index]
            try:
                seen = follow(view, scope, node, self._context.locate) if node.input and node.input[0] == name else None
            except NotFusable as refusal:
                yield _Use(refusal, where, name)
                continue
            if seen is None:
                yield _Use(view, where, name)
            else:
                if scope.is_output(node.output[0]):
                    yield _Use(NotFusable(Reason.GRAPH_OUTPUT), where, name)
                waiting.append(_readers(seen, scope, node.output[0]))


def _readers(view: View, scope: Scope, name: str) -> Iterator[tuple[View, NodeRef, str]]:
    return ((view, use, name) for use in dict.fromkeys(scope.uses(name)))


def _unfused(scope: Scope, node: NodeProto, reason: Reason) -> UnfusedWeight:
    operands = [scope.constant(name) for name in node.input[:3]]
    weight, scales = operands[0], operands[1]
    has_shape = weight is not None and len(weight.dims) <= MAX_RANK and min(weight.dims, default=0) >= 0
    shape = tuple(weight.dims) if weight is not None and has_shape else (0,)
    block_size = attribute(node, "block_size")
    element_bytes = 4 if scales is None or scales.data_type == FLOAT else 2
    return UnfusedWeight(
        dequantize=node.name or node.output[0],
        weight=node.input[0],
        reason=reason,
        shape=shape,
        bits=bits_of(weight.data_type) if weight is not None and weight.data_type in ELEMENTS else 0,
        block_size=0 if block_size is None else block_size.i,
        stored_bytes=min(sum(_stored_bytes(operand) for operand in operands if operand is not None), _MAX_BYTES),
        bytes_per_run=0 if reason in _NEVER_RUN else min(math.prod(shape) * element_bytes, _MAX_BYTES),
    )


def _stored_bytes(tensor: TensorProto) -> int:
    with suppress(ModelError):
        return tensor_bytes(tensor.data_type, shape_of(tensor))
    return 0
