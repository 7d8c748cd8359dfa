"""Fusions become nodes: the graph that ONNX Runtime is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.emit import FreshNames, NodeEmitter
from ort_qdq_plugin.fusion.kind import Fusion
from ort_qdq_plugin.fusion.validity import is_as_specified, newest_opset
from ort_qdq_plugin.model.graph import NodeRef, Scope, scopes
from ort_qdq_plugin.model.messages import STANDARD_DOMAINS, attribute, int_attribute, made_node, subgraphs, text
from ort_qdq_plugin.model.operators import CONTRIB_DOMAIN, role_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["Rewriter", "lift_from_subgraphs", "round_less_in_subgraphs"]

_BRINGS_A_WEIGHT = ("dequantize", "constant", "view", "folded")
_TAKES_A_PART = "Gather"  # a reader, unless its indices are constant
_CONTRIB_VERSION = 1
_ZERO_POINTS = 3  # the input of MatMulNBits
_WRONGLY_TAKEN_BITS = (4, 8)


class Rewriter:
    """Collects the fused nodes of a model and puts them in place: `finish` changes the model. Its scope is stale afterwards.

    Raises:
        ModelError: The model is of several opsets at once, or of one that ONNX Runtime would refuse.
    """

    def __init__(self, model: ModelProto, scope: Scope, names: FreshNames, folded: Set[NodeRef] = frozenset()) -> None:
        self._model = model
        self._folded = folded  # nodes that compute constants, in which nothing is wrong
        self._scope = scope
        self._names = names
        opsets = {entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS}
        if len(opsets) > 1:
            raise ModelError(f"opsets {sorted(opsets)} at once")
        if any(entry.domain == "ai.onnx" and entry.version > newest_opset() for entry in model.opset_import):
            # Under this name ONNX Runtime notices an opset that it does not know only if a node is left that needs it.
            raise ModelError(f"opset {max(opsets)}")
        self._initializers: list[TensorProto] = []
        self._replaced: dict[NodeRef, list[NodeProto]] = {}
        self._removed: set[NodeRef] = set()
        self._dropped: dict[Scope, set[str]] = {}
        self._reads_left: dict[tuple[Scope, str], int] = {}
        self._read_anew: set[tuple[Scope, str]] = set()
        self._renamed: list[tuple[Scope, str, str]] = []

    def put(self, fusion: Fusion, operands: Mapping[str, str]) -> None:
        """Replace a fusion's nodes by its fused node. `operands`: the names of its constant inputs."""
        site = fusion.site
        emitter = NodeEmitter(site.output, site.name, self._names, self._scope.opset)
        fusion.emit(emitter, operands)
        self._initializers += emitter.constants
        # In the place of the last node replaced: everything that the new ones read has been produced by then.
        nodes, scope = emitter.finished(), site.replaced[0][0]
        self._replaced[site.replaced[-1]] = nodes
        self._removed.update(site.replaced[:-1])
        self._read_anew.update((scope.definer(name), name) for node in nodes for name in _reads(node))

    def put_constant(self, node_ref: NodeRef) -> str:
        """Take away a node whose output becomes an initializer of the main graph; the name that this has to have.

        After all fusions.
        """
        scope, index = node_ref
        self._removed.add(node_ref)
        output = scope.nodes[index].output[0]
        if scope.parent is None and isinstance(output, str):
            return output
        # Branches may have values of the same name, and protobuf takes a name that is not UTF-8 by parsing alone.
        name = self._names.fresh(f"{text(output)}.dequantized")
        self._renamed.append((scope, output, name))
        return name

    def finish(self) -> list[TensorProto]:
        """Put the nodes in, and drop what nothing reads any more. Returns the small initializers that the new nodes need."""
        for node_ref in list(dict.fromkeys((*self._removed, *self._replaced))):
            self._release(node_ref)
        # Not before: what a node reads decides whether it may go.
        for scope, output, name in self._renamed:
            for reader in dict.fromkeys(scope.uses(output)):
                for node in (reader[0].nodes[reader[1]], *self._replaced.get(reader, ())):
                    _read_instead(node, output, name)
        # Innermost first: replacing a graph's nodes copies the subgraphs in them.
        for inner in reversed(list(scopes(self._scope))):
            self._apply(inner)
        if self._replaced and all(opset.domain != CONTRIB_DOMAIN for opset in self._model.opset_import):
            self._model.opset_import.add(domain=CONTRIB_DOMAIN, version=_CONTRIB_VERSION)
        return self._initializers

    def _release(self, node_ref: NodeRef) -> None:
        """A node is gone: remove what brought a weight to it, and so on upwards, where nothing reads that any more."""
        waiting = [node_ref]
        while waiting:
            scope, index = waiting.pop()
            for name in filter(None, scope.nodes[index].input):
                value = (scope.definer(name), name)
                self._reads_left[value] = self._reads_left.get(value, len(scope.uses(name))) - 1
                if self._reads_left[value] or scope.is_input(name) or scope.is_output(name) or value in self._read_anew:
                    continue
                found = scope.producer(name)
                if found is None:
                    self._dropped.setdefault(value[0], set()).add(name)
                elif found[:2] not in self._removed and self._may_go(*found[:2]) and self._is_unread(found[0], found[2]):
                    self._removed.add(found[:2])
                    waiting.append(found[:2])

    def _may_go(self, scope: Scope, index: int) -> bool:
        """Whether a node may be there for a weight alone. One that ONNX Runtime would refuse stays, for it to see."""
        node = scope.nodes[index]
        if (scope, index) in self._folded:
            return True
        brings_a_weight = role_of(node) in _BRINGS_A_WEIGHT or node.op_type == _TAKES_A_PART
        return brings_a_weight and is_as_specified(scope, index, self._scope.opset)

    def _is_unread(self, scope: Scope, node: NodeProto) -> bool:
        """Whether nothing reads any output of a node any more, of which a Split has several."""
        values = [(scope, name) for name in node.output if name]
        return not any(
            self._reads_left.get(value, len(scope.uses(value[1]))) or scope.is_output(value[1]) or value in self._read_anew
            for value in values
        )

    def _apply(self, scope: Scope) -> None:
        graph, gone = scope.graph, self._dropped.get(scope, set())
        kept: list[NodeProto] = []
        for index, node in enumerate(scope.nodes):
            if (scope, index) in self._removed:
                gone.update(node.output)
            else:
                kept += self._replaced.get((scope, index), [node])
        if kept != scope.nodes:
            del graph.node[:]
            graph.node.extend(kept)
        for field in (graph.initializer, graph.value_info):
            for at in reversed([at for at, item in enumerate(field) if item.name in gone]):
                del field[at]


def _reads(node: NodeProto) -> Iterator[str]:
    """The names that a node reads, itself or in a graph of its own."""
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)


def lift_from_subgraphs(graph: GraphProto, names: FreshNames, main: GraphProto | None = None) -> None:
    """Move external initializers of the subgraphs of `graph` into the main graph, which is `graph` itself if `main` is None.

    ONNX Runtime looks for the files of a subgraph's initializers on disk, even if it is given them in memory.
    """
    for node in graph.node:
        for subgraph in subgraphs(node):
            _lift(subgraph, main or graph, names)


def round_less_in_subgraphs(graph: GraphProto) -> None:
    """Take the accuracy level from products in subgraphs whose zero points ONNX Runtime would take wrongly at level 4.

    For releases before `model.releases.ZERO_POINTS_OF_OUTER_GRAPHS`. Those whose zero points were in the subgraph, before
    `lift_from_subgraphs`, are not told apart from others.
    """
    for node in graph.node:
        for subgraph in subgraphs(node):
            for inner in subgraph.node:
                level = attribute(inner, "accuracy_level")
                is_wrong = inner.op_type == "MatMulNBits" and int_attribute(inner, "bits", 4) in _WRONGLY_TAKEN_BITS
                if is_wrong and level is not None and any(inner.input[_ZERO_POINTS : _ZERO_POINTS + 1]):
                    level.i = 0
            round_less_in_subgraphs(subgraph)


def _lift(graph: GraphProto, main: GraphProto, names: FreshNames) -> None:
    for at in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[at]
        if tensor.data_location != tensor.EXTERNAL:
            continue
        name, outer = tensor.name, names.fresh(f"{tensor.name}.lifted")
        main.initializer.add().CopyFrom(tensor)
        main.initializer[-1].name = outer
        del graph.initializer[at]
        _rename(graph, name, outer)
        if any(value.name == name for value in graph.output):
            graph.node.append(made_node("Identity", [outer], [name], name=names.fresh(f"{name}.Identity")))
    lift_from_subgraphs(graph, names, main)


def _rename(graph: GraphProto, name: str, new: str) -> None:
    """Let every node of `graph`, and of the graphs inside it, read `new` instead of `name`."""
    for node in graph.node:
        _read_instead(node, name, new)
        for subgraph in subgraphs(node):
            _rename(subgraph, name, new)


def _read_instead(node: NodeProto, name: str, new: str) -> None:
    for at, read in enumerate(node.input):
        if read == name:
            node.input[at] = new
