"""A node as the rules of shapes see it: its attributes, its constants, and what is known of the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ort_qdq_plugin.model.messages import attribute, int_attribute
from ort_qdq_plugin.model.shapes import Shape, whole_numbers
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["ALL", "NOTHING", "Row", "Rule", "Seen"]

NOTHING: Shape = (-2,)
"""The shape of a value of which ONNX's inference says none, for certain."""


class Seen(NamedTuple):
    """A node and its inputs."""

    node: NodeProto
    shapes: Sequence[Shape | None]  # of its inputs, or NOTHING; None for one of which nothing is known
    # The constants of the graph that the node is in, as far as ONNX's inference knows their values: initializers, and what
    # Constant nodes give. Those of outer graphs are values like others to it.
    constants: Mapping[str, TensorProto]
    opset: int

    @property
    def first(self) -> Shape:
        """The shape of the first input, for operators that need it."""
        shape = self.shapes[0]
        assert shape is not None
        return shape

    @property
    def all(self) -> list[Shape]:
        """The shapes of all inputs, for operators that need them."""
        return [shape for shape in self.shapes if shape is not None and shape is not NOTHING]

    def shape(self, at: int) -> Shape | None:
        """The shape of the input at this place, if it is known and there is one."""
        shape = self.shapes[at] if at < len(self.shapes) else None
        return None if shape is NOTHING else shape

    def has(self, at: int) -> bool:
        """Whether there is an input at this place."""
        return at < len(self.node.input) and bool(self.node.input[at])

    def is_computed(self, at: int) -> bool:
        """Whether the input at this place is no constant."""
        return self.has(at) and self.node.input[at] not in self.constants

    def numbers(self, at: int) -> list[int] | None:
        """The whole numbers of the constant vector that the input at this place is; None for others."""
        return whole_numbers(self.constants.get(self.node.input[at])) if self.has(at) else None

    def ints(self, name: str) -> list[int] | None:
        """The whole numbers of the attribute called `name`; None if there is none."""
        found = attribute(self.node, name)
        return None if found is None else list(found.ints)

    def whole(self, name: str, default: int = 0) -> int:
        """The whole number of the attribute called `name`, or the default."""
        return int_attribute(self.node, name, default)

    def text(self, name: str, default: str = "") -> str:
        """The text of the attribute called `name`, or the default."""
        found = attribute(self.node, name)
        return default if found is None else found.s.decode("utf-8", "replace")

    def has_any(self, *names: str) -> bool:
        """Whether there is an attribute that has one of these names."""
        return any(attr.name in names for attr in self.node.attribute)

    def axis(self, default: int, rank: int) -> int | None:
        """The attribute ``axis`` of a value of that rank, counted from the front; None if there is no such axis."""
        axis = self.whole("axis", default)
        return (axis + rank if axis < 0 else axis) if -rank <= axis < rank else None


Rule = Callable[[Seen], "Sequence[Shape | None]"]
"""The shapes of a node's outputs, in their order; None, or fewer than there are, where a rule is not sure."""

ALL = -1
"""Of a row: all inputs."""


class Row(NamedTuple):
    """An operator: its rule, and of how many of its first inputs a shape must be known, or ONNX's inference says none."""

    rule: Rule
    needs: int = 1
