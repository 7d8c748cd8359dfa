"""Putting fused nodes and their operands together: the model that ONNX Runtime is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ort_qdq_plugin.fusion.emit import FreshNames
from ort_qdq_plugin.fusion.kind import Fusion
from ort_qdq_plugin.fusion.rewrite import Rewriter, lift_from_subgraphs
from ort_qdq_plugin.memory.external_data import ExternalData
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import TensorProto, external_tensors
from ort_qdq_plugin.model.operands import Operand, as_stored
from ort_qdq_plugin.model.parsed import ParsedModel
from ort_qdq_plugin.packing.layout import Layout

__all__ = ["assemble"]

_MAX_STEM = 200  # characters of a name that every fused node repeats


def assemble(
    opened: ParsedModel, scope: Scope, fusions: Iterable[Fusion], layout: Layout, external_data: ExternalData
) -> bytes:
    """Replace what was fused, and say of every large tensor where its bytes are.

    Args:
        opened: The model. It is changed.
        scope: Of its main graph.
        fusions: What is fused.
        layout: Where their operands go.
        external_data: Where ONNX Runtime will find them, and everything else.

    Returns:
        The serialized model.

    Raises:
        ModelError: The model imports opsets that ONNX Runtime would refuse.
    """
    graph, names = opened.proto.graph, FreshNames(scope)
    initializers = _Initializers(layout, external_data, names.fresh)
    rewriter = Rewriter(opened.proto, scope, names)
    for fusion in fusions:
        source = next(operand.source for operand in fusion.operands.values() if operand.source is not None)
        stem = f"{(source.name or fusion.site.dequantize)[:_MAX_STEM]}.{fusion.operator}"
        given = {name: initializers.of(operand, f"{stem}.{name}") for name, operand in fusion.operands.items()}
        rewriter.put(fusion, given)
    constants = rewriter.finish()
    lift_from_subgraphs(graph, names)
    for tensor in external_tensors(graph):
        stored = opened.locate(tensor)
        initializers.place(tensor, as_stored(stored, stored.shape))
    graph.initializer.extend([*initializers.made, *constants])
    # Last, when everything has been read or mapped: what was packed and what is used in place belong together.
    opened.skeleton.check_unchanged()
    return bytes(opened.proto.SerializeToString())


class _Initializers:
    """Initializers for operands, one for all that are the same."""

    def __init__(self, layout: Layout, external_data: ExternalData, fresh: Callable[[str], str]) -> None:
        self.made: list[TensorProto] = []
        self._layout = layout
        self._external_data = external_data
        self._fresh = fresh
        self._names: dict[tuple[object, ...], str] = {}

    def of(self, operand: Operand, wanted: str) -> str:
        """The name of the operand's initializer, `wanted` or like it."""
        key = operand.key
        if key not in self._names:
            name = self._names[key] = self._fresh(wanted)
            self.made.append(TensorProto(name=name, data_type=operand.data_type, dims=operand.shape))
            self.place(self.made[-1], operand)
        return self._names[key]

    def place(self, tensor: TensorProto, operand: Operand) -> None:
        """Say of the initializer of an operand where its bytes are: in a packed buffer, or where the model stores them."""
        slot = self._layout.slots.get(operand.key)
        if slot is not None:
            self._external_data.put_packed(tensor, slot.segment, slot.offset, operand.nbytes)
        elif operand.source is not None:
            self._external_data.put(tensor, operand.source)
