"""Nodes, inputs and outputs being drawn, and the model that they make."""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx.parser
from onnx import TensorProto, helper

from conformance.drawing.elements import TYPES, Dim

__all__ = ["Canvas", "graphs_of"]


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those within it, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)


class Canvas:
    """A graph being drawn up."""

    def __init__(self, opset: int = 21) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.values: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self._unnamed = 0

    def node(self, op: str, inputs: Sequence[str], output: str = "", *, domain: str = "", **attributes: Any) -> str:
        """Adds a node, and gives its output, which gets a name of its own where none is given."""
        if not output:
            self._unnamed += 1
            output = f"{op}{self._unnamed}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"{output}_node", domain=domain, **attributes))
        return output

    def write(self, text: str) -> None:
        """Adds nodes from ONNX' text form, `h = Gemm <transB = 1> (x, w)  y = Relu(h)`, each named after its output."""
        for node in onnx.parser.parse_graph(f"g () => () {{ {text} }}").node:
            attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
            del node.attribute[:]
            node.attribute.extend(attributes)
            node.name = f"{node.output[0]}_node"
            self.nodes.append(node)

    def input(self, name: str, shape: Sequence[Dim] | None, kind: str = "float") -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))
        return name

    def output(self, name: str, shape: Sequence[Dim] | None, kind: str = "float") -> str:
        self.outputs.append(helper.make_tensor_value_info(name, TYPES[kind], shape))
        return name

    def declare(self, name: str, shape: Sequence[Dim], kind: str = "float") -> None:
        """States the shape of a value in between, as exporters do."""
        self.values.append(helper.make_tensor_value_info(name, TYPES[kind], shape))

    def require(self, bits: int) -> None:
        """Raises the opset to one whose DequantizeLinear knows elements of that many bits."""
        if bits < 4:
            self.opset = max(self.opset, 25)

    def graph(self, name: str) -> onnx.GraphProto:
        return helper.make_graph(
            self.nodes, name, inputs=self.inputs, outputs=self.outputs, initializer=self.initializers, value_info=self.values
        )

    def model(self, name: str = "pattern") -> onnx.ModelProto:
        """What was drawn, as a model that imports no more than it uses."""
        drawn = self.graph(name)
        used = {node.domain for graph in graphs_of(drawn) for node in graph.node}
        domains = sorted({""} | used | {function.domain for function in self.functions})
        opsets = [helper.make_opsetid(domain, 1 if domain else self.opset) for domain in domains]
        version = 13 if self.opset >= 25 else 10 if self.opset >= 21 else 8
        return helper.make_model(drawn, opset_imports=opsets, ir_version=version, functions=self.functions)
