"""The nodes that take the place of fused ones: one after another, each reading what the one before it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ort_qdq_plugin.model.elements import INT64
from ort_qdq_plugin.model.graph import Scope, scopes
from ort_qdq_plugin.model.messages import GraphProto, NodeProto, TensorProto, add_values, made_node, made_tensor, text
from ort_qdq_plugin.model.operators import CONTRIB_DOMAIN

__all__ = ["FreshNames", "NodeEmitter"]

# Since this opset Unsqueeze takes its axes as an input.
_UNSQUEEZE_AXES_INPUT = 13
# Since this one Split wants the number of its parts as an attribute.
_SPLIT_NUM_OUTPUTS = 18


class FreshNames:
    """Names for values and nodes that a model does not have yet, in any of its graphs."""

    def __init__(self, scope: Scope) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}
        for inner in scopes(scope):
            self._taken.update(inner.initializers)
            self._taken.update(value.name for value in inner.graph.input)
            self._taken.update(name for node in inner.nodes for name in (node.name, *node.output))

    def fresh(self, wanted: str) -> str:
        """`wanted`, with a number if that name is taken. The result is taken from now on."""
        name, number = wanted, self._numbers.get(wanted, 0)
        while name in self._taken:
            number += 1
            name = f"{wanted}.{number}"
        self._numbers[wanted] = number
        self._taken.add(name)
        return name


class NodeEmitter:
    """Nodes one after another, the last of which produces `output`."""

    def __init__(self, output: str, name: str, names: FreshNames, opset: int) -> None:
        self.constants: list[TensorProto] = []  # the small initializers that the nodes read
        self._nodes: list[NodeProto] = []
        self._output = output
        self._name = name
        self._names = names
        self._opset = opset

    def fused(self, op_type: str, inputs: Sequence[str], **numbers: Any) -> str:
        """Add a fused node, an operator of ONNX Runtime's own domain. Returns the name of its output.

        The first of them has the name of the node that is replaced. Attributes are whole numbers, or those of another node.
        """
        name, self._name = self._name, ""
        return self._add(op_type, inputs, name, CONTRIB_DOMAIN, numbers)

    def node(self, op_type: str, inputs: Sequence[str], **numbers: Any) -> str:
        """Add a standard node; its attributes are whole numbers, sequences of them, or graphs. Returns its output's name."""
        return self._add(op_type, inputs, "", "", numbers)

    def unsqueezed(self, value: str, count: int) -> str:
        """Add nodes that put `count` axes of size 1 before those of `value`. Returns the name of the result."""
        axes = list(range(count))
        if self._opset < _UNSQUEEZE_AXES_INPUT:
            return self.node("Unsqueeze", [value], axes=axes)
        return self.node("Unsqueeze", [value, self._numbers(axes, "axes")])

    def split(self, value: str, count: int, axis: int) -> list[str]:
        """Add a Split of an axis into `count` equal parts. Returns their names."""
        numbers = {"num_outputs": count} if self._opset >= _SPLIT_NUM_OUTPUTS else {}
        first = self.node("Split", [value], axis=axis, **numbers)
        parts = [first, *(self._names.fresh(first) for _ in range(count - 1))]
        add_values(self._nodes[-1], outputs=parts[1:])
        return parts

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        """Add a Reshape (opset 5), in whose shape 0 stands for what `value` has there. Returns the result's name."""
        return self.node("Reshape", [value, self._numbers(shape, "shape")])

    def cut(self, value: str, length: int) -> str:
        """Add a Slice (opset 10) that leaves the first `length` elements along the last axis. Returns the result's name."""
        numbers = {"starts": 0, "ends": length, "axes": -1}
        return self.node("Slice", [value, *(self._numbers([number], name) for name, number in numbers.items())])

    def branch(self, data_type: int, write: Callable[[NodeEmitter], object]) -> GraphProto:
        """A graph for a node's attribute. Its one output, of this type, is that of the last node that `write` adds."""
        output = self._names.fresh(f"{text(self._output)}.branch")
        inner = NodeEmitter(output, self._names.fresh(f"{self._name}.branch"), self._names, self._opset)
        write(inner)
        self.constants += inner.constants
        graph = GraphProto(name=output, node=inner.finished())
        graph.output.add(name=output).type.tensor_type.elem_type = data_type
        return graph

    def constant(self, tensor: TensorProto, name: str) -> str:
        """Add an initializer. Returns its name, which is `name` if nothing else is called so."""
        tensor.name = self._names.fresh(name)
        self.constants.append(tensor)
        return tensor.name

    def finished(self) -> list[NodeProto]:
        """The nodes."""
        del self._nodes[-1].output[:]
        add_values(self._nodes[-1], outputs=[self._output])
        return self._nodes

    def _numbers(self, numbers: Sequence[int], name: str) -> str:
        tensor = made_tensor(INT64, (len(numbers),), np.array(numbers, "<i8").tobytes())
        return self.constant(tensor, name)

    def _add(self, op_type: str, inputs: Sequence[str], name: str, domain: str, numbers: dict[str, Any]) -> str:
        output = self._names.fresh(f"{text(self._output)}.{op_type}")
        self._nodes.append(made_node(op_type, inputs, [output], name=name or output, domain=domain, **numbers))
        return output
