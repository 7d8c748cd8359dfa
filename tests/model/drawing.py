"""A node that is drawn at random: its attributes, its constants, and shapes of which some dimensions are open."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]


class Drawing:
    """A model that is drawn: random numbers, and what was drawn so far. Its node gives ``y0``, ``y1`` and so on."""

    def __init__(self, op_type: str, opset: int, seed: int, domain: str = "") -> None:
        self.op_type, self.opset, self.rng, self.domain = op_type, opset, Random(seed), domain
        self.without_shape = 0.0  # the chance that an input of the model has none
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def chance(self, of: float) -> bool:
        return self.rng.random() < of

    def number(self, least: int, most: int) -> int:
        return self.rng.randint(least, most)

    def pick(self, *of: Any) -> Any:
        return self.rng.choice(of)

    def perhaps(self, value: Any, chance: float = 0.5) -> Any:
        """The value, or None, which stands for an attribute that is not there."""
        return value if self.chance(chance) else None

    def dim(self) -> int | str | None:
        return self.rng.choice([1, 2, 3, 4, 6, 8, "a", "b", None])

    def dims(self, least: int = 1, most: int = 4) -> list[int | str | None]:
        return [self.dim() for _ in range(self.number(least, most))]

    def value(self, dims: Dims | None, data_type: int = TensorProto.FLOAT) -> str:
        """An input of the model."""
        name = f"x{len(self.inputs)}"
        dims = None if self.without_shape and self.chance(self.without_shape) else dims
        self.inputs.append(helper.make_tensor_value_info(name, data_type, dims))
        return name

    def constant(self, value: Any, dtype: str = "int64") -> str:
        """An initializer, or what a Constant node gives."""
        name = f"c{len(self.constants) + len(self.nodes)}"
        tensor = numpy_helper.from_array(np.asarray(value, dtype), name)
        if self.chance(0.3):
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.constants.append(tensor)
        return name

    def numbers(self, values: Sequence[int]) -> str:
        """A vector that is constant or computed, of a length that is known or not."""
        if self.chance(0.75):
            return self.constant(values)
        return self.value([self.pick(len(values), len(values), "k")], TensorProto.INT64)

    def node(self, *inputs: str, outputs: int = 1, **attributes: Any) -> None:
        given = {name: value for name, value in attributes.items() if value is not None}
        names = [f"y{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(self.op_type, inputs, names, domain=self.domain, **given))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "g", self.inputs, [], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
