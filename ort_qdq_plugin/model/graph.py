"""A graph and its subgraphs as scopes: who produces, who consumes and what is constant under a name."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.computed import computed_once
from ort_qdq_plugin.model.elements import FLOAT, INT64
from ort_qdq_plugin.model.messages import STANDARD_DOMAINS, attribute, is_standard, made_tensor, subgraphs
from ort_qdq_plugin.model.shapes import UNKNOWN, Shape, inferred_graph, stated_shapes
from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from ort_qdq_plugin.model.followed import Known

__all__ = ["NodeRef", "Scope", "check_imports", "domains", "domains_once_inlined", "model_scope", "scopes"]

# Initializers that are also graph inputs can be overridden at run time from this IR version on (onnx.proto, IR_VERSION 4).
_FIRST_IR_WITH_OVERRIDES = 4

# Characters of a name. Every fused node repeats the names of its operands, so long names could make a small model huge.
_MAX_NAME = 1024


class Scope:
    """One graph, indexed once.

    Raises:
        ModelError: Names are too long, or two things have the same name.
    """

    def __init__(self, graph: GraphProto, parent: Scope | None, ir_version: int, owner: int = 0) -> None:
        self.graph = graph
        self.parent = parent  # None for a model's main graph
        self.root: Scope = self if parent is None else parent.root
        self.nodes: list[NodeProto] = list(graph.node)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        # The names of its values that leave a graph under that name, this one or one inside it.
        self.outputs = {value.name for value in graph.output}
        # For each value that this graph defines, the nodes that read it, here or in subgraphs: once per input.
        self.consumers: dict[str, list[tuple[Scope, int]]] = {}
        self.children: list[Scope] = []  # of its nodes' subgraphs
        self._ir_version = ir_version
        self._constants: dict[str, TensorProto | None] = {}
        self._model: ModelProto | None = None
        self._inputs = {value.name for value in graph.input}
        self._owner = owner  # index of the parent's node that this graph belongs to
        outputs = [name for node in self.nodes for name in node.output if name]
        if any(len(name) > _MAX_NAME for name in (*outputs, *self.initializers, *(node.name for node in self.nodes))):
            raise ModelError(f"names of more than {_MAX_NAME} characters")
        if len(outputs) != len(set(outputs)):
            raise ModelError("two nodes have an output of the same name")
        if not self.initializers.keys().isdisjoint(outputs):
            raise ModelError("an initializer has the name of a node's output")
        node_names = [node.name for node in self.nodes if node.name]
        if len(node_names) != len(set(node_names)):
            raise ModelError("two nodes have the same name")
        if len(self.initializers) < len(graph.initializer):
            raise ModelError("two initializers have the same name")
        if parent is not None and any(parent.definer(name)._defines(name) for name in (*outputs, *self.initializers)):
            raise ModelError("a value in a subgraph has the same name as one outside it")
        self._producers: dict[str, int] = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        for index, node in enumerate(self.nodes):
            for name in node.input:
                if name:
                    self.definer(name).consumers.setdefault(name, []).append((self, index))
            self.children += [Scope(subgraph, self, ir_version, index) for subgraph in subgraphs(node)]
        for value in graph.output:
            # A subgraph may return an outer value as it is.
            definer = self.definer(value.name)
            if definer is not self:
                definer.outputs.add(value.name)

    @computed_once
    def opset(self) -> int:
        """The opset of the standard domain that the model imports, the newest if there are several; 0 if there is none."""
        imports = () if self.root._model is None else self.root._model.opset_import
        return max((entry.version for entry in imports if entry.domain in STANDARD_DOMAINS), default=0)

    def _defines(self, name: str) -> bool:
        return name in self._producers or name in self.initializers or name in self._inputs

    def has_before(self, name: str, index: int) -> bool:
        """Whether the node at `index` here, or what is inside it, can read a value called `name`."""
        if self._producers.get(name, index) < index or name in self.initializers or name in self._inputs:
            return True
        return self.parent is not None and self.parent.has_before(name, self._owner)

    def definer(self, name: str) -> Scope:
        """The scope in which the value called `name` here is defined."""
        scope: Scope = self
        while not scope._defines(name) and scope.parent is not None:
            scope = scope.parent
        return scope

    def producer(self, name: str) -> tuple[Scope, int, NodeProto] | None:
        """The (scope, node index, node) whose output is called `name` here; None for inputs and initializers."""
        scope = self.definer(name)
        index = scope._producers.get(name)
        return None if index is None else (scope, index, scope.nodes[index])

    def constant(self, name: str) -> TensorProto | None:
        """The constant tensor called `name`: an initializer that nobody can override, or a Constant node's value."""
        scope, passed = self.definer(name), []
        # Through any number of Identity nodes. What each of them stands for is remembered, since many nodes may share them.
        while name not in scope._constants:
            passed.append((scope, name))
            scope._constants[name] = None  # so that a cycle ends here
            source = scope._identity_of(name)
            if source is None:
                scope._constants[name] = scope._own_constant(name)
            else:
                scope, name = scope.definer(source), source
        tensor = scope._constants[name]
        for inner, passed_name in passed:
            inner._constants[passed_name] = tensor
        return tensor

    def _identity_of(self, name: str) -> str | None:
        """What an Identity node reads whose output is called `name`."""
        index = None if name in self.initializers else self._producers.get(name)
        if index is None:
            return None
        node = self.nodes[index]
        return node.input[0] if node.op_type == "Identity" and is_standard(node) and node.input else None

    def _own_constant(self, name: str) -> TensorProto | None:
        tensor = self.initializers.get(name)
        if tensor is not None:
            overridable = name in self._inputs and self._ir_version >= _FIRST_IR_WITH_OVERRIDES
            return None if overridable else tensor
        index = self._producers.get(name)
        if index is None or self.nodes[index].op_type != "Constant" or not is_standard(self.nodes[index]):
            return None
        value = attribute(self.nodes[index], "value")
        if value is not None and value.HasField("t"):
            return value.t
        for field, data_type, code in (("value_float", FLOAT, "f"), ("value_int", INT64, "q")):
            one, several = attribute(self.nodes[index], field), attribute(self.nodes[index], f"{field}s")
            if one is not None:
                return made_tensor(data_type, (), struct.pack(f"<{code}", one.f if data_type == FLOAT else one.i), name)
            if several is not None:
                numbers = several.floats if data_type == FLOAT else several.ints
                return made_tensor(data_type, (len(numbers),), struct.pack(f"<{len(numbers)}{code}", *numbers), name)
        return None

    def is_overridable(self, name: str) -> bool:
        """Whether `name` is an initializer that the caller of run() may replace."""
        scope = self.definer(name)
        return name in scope.initializers and scope.constant(name) is None

    def uses(self, name: str) -> list[tuple[Scope, int]]:
        """Every (scope, node index) that reads the value called `name` here, once per input that does."""
        return self.definer(name).consumers.get(name, [])

    def shape(self, name: str) -> Shape | None:
        """The shape of the value called `name` here, where the model says it or it can be inferred."""
        scope = self.definer(name)
        known, is_all = scope._known(name)
        return known if is_all else self.root._inferred_shapes.get(scope, {}).get(name)

    def rank(self, name: str) -> int | None:
        """The rank of the value called `name` here, where `shape` has one. ONNX's inference is asked less often."""
        known, _ = self.definer(name)._known(name)
        shape = self.shape(name) if known is None else known
        return None if shape is None else len(shape)

    def is_fixed(self, name: str) -> bool:
        """Whether `shape` has all dimensions of the value called `name` here. ONNX's inference is asked less often."""
        known, _ = self.definer(name)._known(name)
        shape = known if known is not None and None in known else self.shape(name)
        return shape is not None and None not in shape

    def known_shape(self, name: str) -> Shape | None:
        """As `shape`, without ONNX's inference, which costs much: dimensions that it might say are None."""
        known, _ = self.definer(name)._known(name)
        return None if known is None else tuple(None if dim == UNKNOWN else dim for dim in known)

    def _known(self, name: str) -> tuple[Shape | None, bool]:
        """What is known of the shape of a value of this graph, and whether ONNX's inference would say no more."""
        if name in self._stated_shapes:
            return self._stated_shapes[name], True
        followed = self.root._followed_shapes[self]
        shape = followed.get(name)
        return shape, name in followed and (shape is None or UNKNOWN not in shape)

    def stated_shape(self, name: str) -> Shape | None:
        """The shape of the value called `name` here, where the model says it. Nothing is inferred."""
        return self.definer(name)._stated_shapes.get(name)

    @computed_once
    def _stated_shapes(self) -> dict[str, Shape]:
        return stated_shapes(self.graph)

    @computed_once
    def _followed_shapes(self) -> dict[Scope, Known]:
        """What follows from what is stated, in this main graph and its subgraphs."""
        # Many models state all shapes that are asked for.
        with fork_lock:
            from ort_qdq_plugin.model.followed import followed_shapes
        functions = self._model is not None and bool(self._model.functions)
        inner = list(scopes(self))
        stated = (scope._stated_shapes for scope in inner)
        return dict(zip(inner, followed_shapes(self.graph, self.opset, stated, has_functions=functions), strict=True))

    @computed_once
    def _inferred_shapes(self) -> dict[Scope, dict[str, Shape]]:
        """What ONNX's shape inference says, for this main graph and its subgraphs."""
        inferred = None if self._model is None else inferred_graph(self._model)
        graphs, inner = [] if inferred is None else list(_graphs(inferred)), list(scopes(self))
        if len(graphs) != len(inner):
            return {}
        return {scope: stated_shapes(graph) for scope, graph in zip(inner, graphs, strict=True)}

    def stated_type(self, name: str) -> int | None:
        """The element type that the model states for the value called `name` here; None where it states none."""
        return self.definer(name)._stated_types.get(name)

    @computed_once
    def _stated_types(self) -> dict[str, int]:
        return {
            value.name: value.type.tensor_type.elem_type
            for values in (self.graph.output, self.graph.value_info, self.graph.input)
            for value in values
            if value.HasField("type") and value.type.HasField("tensor_type")
        }

    def is_input(self, name: str) -> bool:
        """Whether `name` here is an input of a graph, with an initializer or without."""
        return name in self.definer(name)._inputs

    def is_output(self, name: str) -> bool:
        """Whether the value called `name` here leaves a graph under that name."""
        return name in self.definer(name).outputs


NodeRef = tuple[Scope, int]
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


def domains_once_inlined(model: ModelProto, used: set[str]) -> set[str]:
    """The domains of a model's operators when its functions are inlined. `used`: those of all operators in its graphs."""
    of_functions = {node.domain for function in model.functions for node in function.node}
    return (used | of_functions) - {function.domain for function in model.functions}


def check_imports(model: ModelProto, used: set[str]) -> None:
    """Raise ModelError where operators have the standard domain's long name, and the model imports it by the other only.

    In subgraphs ONNX Runtime takes them for two. `used`: the domains of all operators.
    """
    if "ai.onnx" in used and all(entry.domain != "ai.onnx" for entry in model.opset_import):
        raise ModelError("domain 'ai.onnx' is not imported")


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and all graphs inside it, in the order of `scopes`."""
    yield graph
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from _graphs(subgraph)
