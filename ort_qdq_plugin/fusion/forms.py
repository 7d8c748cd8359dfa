"""The form of a dequantized weight in words: its type and shape, what shares a scale, and the nodes that it is behind."""

from __future__ import annotations

from ort_qdq_plugin.fusion.dequantize import Dequantized, is_dequantize
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto
from ort_qdq_plugin.model.tensors import MAX_RANK

__all__ = ["form_of"]

# Of nodes that are named on the way up to what is stored, and of characters of an operator's type.
_MAX_STEPS, _MAX_CHARACTERS = 16, 32


def form_of(scope: Scope, node: NodeProto, dequantized: Dequantized | None) -> str:
    """What a DequantizeLinear, or the Mul of what is written out, makes of what the model stores.

    `dequantized`: its operands, if they could be read.
    """
    if is_dequantize(node):
        steps, stored = _climbed(scope, node.input[0])
        behind = [f"behind {', '.join(steps)}"] * bool(steps)
        if len(node.input) > 1 and (of_scales := _climbed(scope, node.input[1])[0]):
            behind.append(f"scales behind {', '.join(of_scales)}")
    else:
        steps, stored = max((_climbed(scope, name) for name in node.input), key=lambda found: "Cast" in found[0])
        behind = [f"written out as {', '.join([*steps, node.op_type])}"]
    return ", ".join([_elements(dequantized, stored), *behind])


def _elements(dequantized: Dequantized | None, stored: TensorProto | None) -> str:
    """Type, shape and what shares a scale."""
    if dequantized is None:
        if stored is None:
            return "a computed weight"
        element = ELEMENTS.get(stored.data_type)
        dims = list(stored.dims) if len(stored.dims) <= MAX_RANK else "of too many axes"
        return f"{'unknown' if element is None else element.name} {dims}"
    if dequantized.axis is None:
        shares = "per tensor"
    elif dequantized.block:
        shares = f"blocks of {dequantized.block} along axis {dequantized.axis}"
    else:
        shares = f"per channel of axis {dequantized.axis}"
    return f"{ELEMENTS[dequantized.weight.data_type].name} {list(dequantized.weight.shape)}, {shares}"


def _climbed(scope: Scope, name: str) -> tuple[list[str], TensorProto | None]:
    """The types of the nodes that a constant goes through on the way to a value, the first one first; and the constant."""
    steps: list[str] = []
    while len(steps) < _MAX_STEPS:
        stored = scope.constant(name)
        if stored is not None:
            return steps[::-1], stored
        found = scope.producer(name)
        if found is None or not found[2].input:
            break
        scope, _, node = found
        steps.append(node.op_type[:_MAX_CHARACTERS])
        name = node.input[0]
    return steps[::-1], None
