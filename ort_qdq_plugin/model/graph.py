"""A graph and its subgraphs as scopes: who produces, who consumes and what is constant under a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from onnx import AttributeProto, TensorProto, helper, shape_inference

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.skeleton import subgraphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["Location", "Scope", "attribute", "attributes", "domains", "is_standard", "model_scope", "scopes"]

# Initializers that are also graph inputs can be overridden at run time from this IR version on (onnx.proto, IR_VERSION 4).
_FIRST_IR_WITH_OVERRIDES = 4


class Scope:
    """One graph, indexed once.

    `nodes`: its nodes in order. `consumers`: for a name this graph defines, the (scope, node index) pairs that read it,
    those in subgraphs included. `outputs`: names that are graph outputs.
    """

    def __init__(self, graph: GraphProto, parent: Scope | None, ir_version: int) -> None:
        self.graph = graph
        self.parent = parent
        self.root: Scope = self if parent is None else parent.root
        self.nodes: list[NodeProto] = list(graph.node)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.consumers: dict[str, list[tuple[Scope, int]]] = {}
        self.children: list[Scope] = []
        self._ir_version = ir_version
        self._ranks: dict[str, int] | None = None
        self._inferred: dict[Scope, dict[str, int]] | None = None
        self._model: ModelProto | None = None
        self._inputs = {value.name for value in graph.input}
        outputs = [name for node in self.nodes for name in node.output if name]
        if len(outputs) != len(set(outputs)):
            raise ModelError("two nodes have an output of the same name")
        self._producers: dict[str, int] = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        for index, node in enumerate(self.nodes):
            for name in node.input:
                if name:
                    self.definer(name).consumers.setdefault(name, []).append((self, index))
            self.children += [Scope(subgraph, self, ir_version) for subgraph in subgraphs(node)]
        for value in graph.output:
            # A subgraph may return an outer value as it is.
            definer = self.definer(value.name)
            if definer is not self:
                definer.outputs.add(value.name)

    def _defines(self, name: str) -> bool:
        return name in self._producers or name in self.initializers or name in self._inputs

    def definer(self, name: str) -> Scope:
        """The scope in which the value called `name` here is defined."""
        scope: Scope = self
        while not scope._defines(name) and scope.parent is not None:
            scope = scope.parent
        return scope

    def producer(self, name: str) -> tuple[Scope, int, NodeProto] | None:
        """(scope, node index, node) whose output is called `name` here, or None for inputs and initializers."""
        scope = self.definer(name)
        index = scope._producers.get(name)
        return None if index is None else (scope, index, scope.nodes[index])

    def constant(self, name: str) -> TensorProto | None:
        """The constant tensor called `name`: an initializer that nobody can override, or a Constant node's value."""
        scope = self.definer(name)
        tensor = scope.initializers.get(name)
        if tensor is not None:
            overridable = name in scope._inputs and scope._ir_version >= _FIRST_IR_WITH_OVERRIDES
            return None if overridable else tensor
        index = scope._producers.get(name)
        if index is None or not is_standard(scope.nodes[index]):
            return None
        if scope.nodes[index].op_type == "Identity" and scope.nodes[index].input:
            return scope.constant(scope.nodes[index].input[0])
        if scope.nodes[index].op_type != "Constant":
            return None
        value = attribute(scope.nodes[index], "value")
        if value is not None and value.HasField("t"):
            return value.t
        scalar = attribute(scope.nodes[index], "value_float")
        return None if scalar is None else helper.make_tensor(name, TensorProto.FLOAT, [], [scalar.f])

    def is_overridable(self, name: str) -> bool:
        """Whether `name` is an initializer that the caller of run() may replace."""
        scope = self.definer(name)
        return name in scope.initializers and scope.constant(name) is None

    def uses(self, name: str) -> list[tuple[Scope, int]]:
        """Every (scope, node index) that reads the value called `name` here, once per input that does."""
        return self.definer(name).consumers.get(name, [])

    def rank(self, name: str) -> int | None:
        """The number of dimensions of the value called `name` here, where the model says it or it can be inferred."""
        scope = self.definer(name)
        if scope._ranks is None:
            scope._ranks = _ranks(scope.graph)
        if name not in scope._ranks:
            scope._ranks |= self.root._inferred_ranks().get(scope, {})
        return scope._ranks.get(name)

    def _inferred_ranks(self) -> dict[Scope, dict[str, int]]:
        """What shape inference says, for this main graph and its subgraphs; asked for once, and only if need be."""
        if self._inferred is None:
            self._inferred = {}
            if self._model is not None:
                with suppress(Exception):  # of many types, for models that it does not understand
                    inferred = shape_inference.infer_shapes(self._model)
                    graphs = list(_graphs(inferred.graph))
                    self._inferred = {scope: _ranks(graph) for scope, graph in zip(scopes(self), graphs, strict=True)}
        return self._inferred

    def is_input(self, name: str) -> bool:
        """Whether `name` here is an input of a graph, be it with an initializer."""
        return name in self.definer(name)._inputs

    def is_output(self, name: str) -> bool:
        """Whether the value called `name` here leaves a graph under that name."""
        return name in self.definer(name).outputs


Location = tuple[Scope, int]
"""A node: its scope and its index there."""


def model_scope(model: ModelProto) -> Scope:
    """The scope of the model's main graph."""
    scope = Scope(model.graph, None, model.ir_version)
    scope._model = model
    return scope


def scopes(scope: Scope) -> Iterator[Scope]:
    """`scope` and all scopes inside it, outermost first."""
    yield scope
    for child in scope.children:
        yield from scopes(child)


def domains(scope: Scope) -> set[str]:
    """The domains of all operators in `scope` and its subgraphs."""
    return {node.domain for inner in scopes(scope) for node in inner.nodes}


def is_standard(node: NodeProto) -> bool:
    """Whether the operator is one of the ONNX specification's own domain."""
    return node.domain in ("", "ai.onnx")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and all graphs inside it, in the order of `scopes`."""
    yield graph
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from _graphs(subgraph)


def _ranks(graph: GraphProto) -> dict[str, int]:
    """Name -> number of dimensions, for the values whose types `graph` states."""
    typed = [*graph.input, *graph.output, *graph.value_info]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in typed if value.type.tensor_type.HasField("shape")}


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """The attribute called `name`, or None."""
    return next((attr for attr in node.attribute if attr.name == name), None)


def attributes(node: NodeProto) -> dict[str, AttributeProto]:
    """All attributes of `node` by name."""
    return {attr.name: attr for attr in node.attribute}
