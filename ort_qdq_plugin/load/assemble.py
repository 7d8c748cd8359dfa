"""Assembling: the model that ONNX Runtime gets, with fused nodes and references to their operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ort_qdq_plugin.fusion.emit import FreshNames
from ort_qdq_plugin.fusion.match import Matches
from ort_qdq_plugin.fusion.rewrite import Rewriter, lift_from_subgraphs, round_less_in_subgraphs
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import TensorProto, external_tensors
from ort_qdq_plugin.model.operands import Operand, as_stored
from ort_qdq_plugin.model.parsed import ParsedModel
from ort_qdq_plugin.model.releases import ZERO_POINTS_OF_OUTER_GRAPHS, has
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.packing.layout import Layout

__all__ = ["Places", "assemble"]

_MAX_STEM = 200  # characters of a name that every fused node repeats


class Places(Protocol):
    """Where tensors of the new model find their bytes: `memory.external_data.ExternalData`."""

    def put(self, tensor: TensorProto, stored: StoredTensor) -> None:
        """Make `tensor` refer to a tensor of the model's own files."""

    def put_packed(self, tensor: TensorProto, segment: int, offset: int, nbytes: int) -> None:
        """Make `tensor` refer to byte `offset` of a packed buffer."""


def assemble(parsed: ParsedModel, scope: Scope, matches: Matches, layout: Layout, data: Places) -> bytes:
    """Replace the nodes that were fused, give every large tensor a reference to its bytes, and serialize the model.

    `parsed` is changed. `scope` is that of its main graph. `data` has the packed buffers and the model's own files.

    Raises:
        ModelError: The model imports opsets that ONNX Runtime would refuse.
    """
    graph, names = parsed.proto.graph, FreshNames(scope)
    initializers = _Initializers(layout, data, names.fresh)
    rewriter = Rewriter(parsed.proto, scope, names, matches.folded)
    for fusion in matches.fusions:
        source = next(operand.source for operand in fusion.operands.values() if operand.source is not None)
        stem = f"{(source.name or fusion.site.dequantize)[:_MAX_STEM]}.{fusion.operator}"
        given = {name: initializers.of(operand, f"{stem}.{name}") for name, operand in fusion.operands.items()}
        rewriter.put(fusion, given)
    values = [initializers.named(rewriter.put_constant(once.node_ref), once.operand) for once in matches.once]
    constants = rewriter.finish()
    lift_from_subgraphs(graph, names)
    if not has(ZERO_POINTS_OF_OUTER_GRAPHS):
        round_less_in_subgraphs(graph)
    for tensor in external_tensors(graph):
        stored = parsed.locate(tensor)
        initializers.refer(tensor, as_stored(stored, stored.shape))
    graph.initializer.extend([*initializers.made, *values, *constants])
    # Last, when everything has been read or mapped: what was packed and what is borrowed must be of the same model.
    parsed.skeleton.check_unchanged()
    return bytes(parsed.proto.SerializeToString())


class _Initializers:
    """Initializers for operands, one for all that are the same bytes of the same shape."""

    def __init__(self, layout: Layout, data: Places, fresh: Callable[[str], str]) -> None:
        self.made: list[TensorProto] = []
        self._layout = layout
        self._data = data
        self._fresh = fresh
        self._names: dict[tuple[object, ...], str] = {}

    def of(self, operand: Operand, wanted: str) -> str:
        """The name of the operand's initializer, `wanted` or like it."""
        key = (operand.shape, *operand.key)
        if key not in self._names:
            self._names[key] = self._fresh(wanted)
            self.made.append(self.named(self._names[key], operand))
        return self._names[key]

    def named(self, name: str, operand: Operand) -> TensorProto:
        """An initializer of this name for an operand."""
        tensor = TensorProto(name=name, data_type=operand.data_type, dims=operand.shape)
        self.refer(tensor, operand)
        return tensor

    def refer(self, tensor: TensorProto, operand: Operand) -> None:
        """Let the initializer of an operand refer to its bytes: in a packed buffer, or where the model stores them."""
        slot = self._layout.slots.get(operand.key)
        if slot is not None:
            self._data.put_packed(tensor, slot.segment, slot.offset, operand.nbytes)
        elif operand.source is not None:
            self._data.put(tensor, operand.source)
