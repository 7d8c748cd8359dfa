"""Fusions become nodes and initializers: the graph that ONNX Runtime is given.

Format facts: inputs and attributes of ``com.microsoft.MatMulNBits`` and ``com.microsoft.GatherBlockQuantized`` version 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx import NodeProto, TensorProto, defs, helper

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.check import check_removed
from ort_qdq_plugin.fusion.gather import GatherFusion
from ort_qdq_plugin.fusion.matmul import MatMulFusion
from ort_qdq_plugin.model.graph import Location, Scope, scopes
from ort_qdq_plugin.model.quantized import WEIGHT_TYPES
from ort_qdq_plugin.model.skeleton import subgraphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["FreshNames", "FusedOperands", "Rewriter", "lift_from_subgraphs"]

_CONTRIB_DOMAIN, _CONTRIB_VERSION = "com.microsoft", 1

# Since this opset Unsqueeze takes its axes as an input.
_UNSQUEEZE_AXES_INPUT = 13

# Nodes that may exist only to bring a weight to what reads it.
_WEIGHT_CHAIN = {
    "DequantizeLinear", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Constant",
}  # fmt: skip


@dataclass(frozen=True)
class FusedOperands:
    """Names of a fused node's constant inputs; "" for none."""

    b: str
    scales: str
    zero_points: str


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
        """`wanted`, numbered where that is taken; taken from now on."""
        name, number = wanted, self._numbers.get(wanted, 0)
        while name in self._taken:
            number += 1
            name = f"{wanted}.{number}"
        self._numbers[wanted] = number
        self._taken.add(name)
        return name


class Rewriter:
    """Collects the fused nodes of a model and puts them in place.

    `scope` is the model's, unchanged since the fusions were found; it is stale after `finish`.
    """

    def __init__(self, model: ModelProto, scope: Scope, names: FreshNames) -> None:
        self._model = model
        self._scope = scope
        self._names = names
        opsets = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
        if len(opsets) > 1:
            raise ModelError(f"opsets {sorted(opsets)} at once")
        if any(entry.domain == "ai.onnx" and entry.version > defs.onnx_opset_version() for entry in model.opset_import):
            # By this name ONNX Runtime notices an opset that it does not know only when a node is left that wants it.
            raise ModelError(f"opset {max(opsets)}")
        self._opset = max(opsets, default=0)
        self._initializers: list[TensorProto] = []
        self._replaced: dict[Location, list[NodeProto]] = {}
        self._removed: set[Location] = set()
        self._dropped: dict[Scope, set[str]] = {}
        self._reads_left: dict[tuple[Scope, str], int] = {}
        self._read_anew: set[tuple[Scope, str]] = set()

    def product(self, fusion: MatMulFusion, operands: FusedOperands, accuracy_level: int) -> None:
        """Replace a product by MatMulNBits and what has to stand around it."""
        chain = _Chain(fusion.output, fusion.name, self._names)
        value = fusion.activation
        before, after = fusion.transposes
        if before is not None:
            value = chain.node("Transpose", [value], perm=before)
        if fusion.casts_from is not None:
            value = chain.node("Cast", [value], to=fusion.weight.scale_type)
        bias = fusion.bias if isinstance(fusion.bias, str) else ""
        if isinstance(fusion.bias, TensorProto):
            bias = self._constant(fusion.bias, f"{fusion.name}.bias")
        inputs = [value, operands.b, operands.scales, operands.zero_points, "", bias]
        while not inputs[-1]:
            inputs.pop()
        value = chain.node(
            "MatMulNBits", inputs, domain=_CONTRIB_DOMAIN, K=fusion.weight.matrix.k, N=fusion.weight.matrix.n,
            bits=fusion.weight.matrix.bits, block_size=fusion.weight.block_size, accuracy_level=accuracy_level,
        )  # fmt: skip
        if fusion.casts_from is not None:
            value = chain.node("Cast", [value], to=fusion.casts_from)
        if after is not None:
            value = chain.node("Transpose", [value], perm=after)
        if fusion.new_axes:
            value = self._unsqueezed(chain, value, fusion.new_axes)
        if fusion.addend is not None:
            addend = fusion.addend.name
            if fusion.addend.beta != 1.0:
                data_type = fusion.casts_from or fusion.weight.scale_type
                beta = helper.make_tensor("", data_type, [], [fusion.addend.beta])
                addend = chain.node("Mul", [addend, self._constant(beta, f"{fusion.name}.beta")])
            chain.node("Add", [value, addend])
        self._replace(fusion, chain)

    def gather(self, fusion: GatherFusion, scales: str, zero_points: str) -> None:
        """Replace a Gather by GatherBlockQuantized on the same table."""
        chain = _Chain(fusion.output, fusion.name, self._names)
        table = fusion.dequantized
        inputs = [table.names[0], fusion.indices, scales, *([zero_points] if zero_points else [])]
        value = chain.node(
            "GatherBlockQuantized", inputs, domain=_CONTRIB_DOMAIN, gather_axis=0, quantize_axis=1,
            block_size=fusion.block_size, bits=WEIGHT_TYPES[table.weight.data_type][0],
        )  # fmt: skip
        if fusion.cast_to is not None:
            chain.node("Cast", [value], to=fusion.cast_to)
        self._replace(fusion, chain)

    def finish(self) -> list[TensorProto]:
        """Change the model: put the nodes in and drop what nothing reads any more; the small constants that they need.

        Raises ModelError where a node that would go is not valid.
        """
        for location in list(dict.fromkeys((*self._removed, *self._replaced))):
            self._release(location)
        for scope, index in dict.fromkeys((*self._removed, *self._replaced)):
            check_removed(scope, index, self._opset)
        removed: dict[Scope, set[int]] = {}
        for scope, index in self._removed:
            removed.setdefault(scope, set()).add(index)
        replaced: dict[Scope, dict[int, list[NodeProto]]] = {}
        for (scope, index), nodes in self._replaced.items():
            replaced.setdefault(scope, {})[index] = nodes
        # Innermost first: replacing a graph's nodes copies the subgraphs in them.
        for inner in reversed(list(scopes(self._scope))):
            self._apply(inner, removed.get(inner, set()), replaced.get(inner, {}))
        if self._replaced and all(opset.domain != _CONTRIB_DOMAIN for opset in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(_CONTRIB_DOMAIN, _CONTRIB_VERSION))
        return self._initializers

    def _replace(self, fusion: MatMulFusion | GatherFusion, chain: _Chain) -> None:
        # The last of the nodes replaced: there everything that they read has been produced.
        nodes, scope = chain.finished(), fusion.replaced[0][0]
        self._replaced[fusion.replaced[-1]] = nodes
        self._removed.update(fusion.replaced[:-1])
        self._read_anew.update((scope.definer(name), name) for node in nodes for name in node.input)

    def _constant(self, tensor: TensorProto, name: str) -> str:
        tensor.name = self._names.fresh(name)
        self._initializers.append(tensor)
        return tensor.name

    def _unsqueezed(self, chain: _Chain, value: str, count: int) -> str:
        axes = list(range(count))
        if self._opset < _UNSQUEEZE_AXES_INPUT:
            return chain.node("Unsqueeze", [value], axes=axes)
        return chain.node(
            "Unsqueeze", [value, self._constant(helper.make_tensor("", TensorProto.INT64, [count], axes), "axes")]
        )

    def _release(self, location: Location) -> None:
        """A node is gone: remove what produced its inputs, and so on upwards, where nothing reads that any more."""
        waiting = [location]
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
                elif found[2].op_type in _WEIGHT_CHAIN and len(found[2].output) == 1 and found[:2] not in self._removed:
                    self._removed.add(found[:2])
                    waiting.append(found[:2])

    def _apply(self, scope: Scope, removed: set[int], replaced: dict[int, list[NodeProto]]) -> None:
        graph = scope.graph
        gone = self._dropped.get(scope, set()) | {name for index in removed for name in scope.nodes[index].output}
        if removed or replaced:
            kept = [replaced.get(index, [node]) for index, node in enumerate(scope.nodes) if index not in removed]
            _set_nodes(graph, [node for nodes in kept for node in nodes])
        for field in (graph.initializer, graph.value_info):
            for at in reversed([at for at, item in enumerate(field) if item.name in gone]):
                del field[at]


def lift_from_subgraphs(graph: GraphProto, names: FreshNames) -> None:
    """Move external initializers of the subgraphs of `graph`, a main graph, into it.

    ONNX Runtime checks a subgraph's against the file system, even those whose files it is given in memory.
    """
    for node in graph.node:
        for subgraph in subgraphs(node):
            _lift(subgraph, graph, names)


def _lift(graph: GraphProto, main: GraphProto, names: FreshNames) -> None:
    for at in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[at]
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        name, outer = tensor.name, names.fresh(f"{tensor.name}.lifted")
        main.initializer.add().CopyFrom(tensor)
        main.initializer[-1].name = outer
        del graph.initializer[at]
        _rename(graph, name, outer)
        if any(value.name == name for value in graph.output):
            graph.node.append(helper.make_node("Identity", [outer], [name], name=names.fresh(f"{name}.Identity")))
    for node in graph.node:
        for subgraph in subgraphs(node):
            _lift(subgraph, main, names)


def _rename(graph: GraphProto, name: str, new: str) -> None:
    """Let every node of `graph`, and of the graphs inside it, read `new` instead of `name`."""
    for node in graph.node:
        for at, read in enumerate(node.input):
            if read == name:
                node.input[at] = new
        for subgraph in subgraphs(node):
            _rename(subgraph, name, new)


class _Chain:
    """Nodes one after another, the last of which is to produce `output`."""

    def __init__(self, output: str, name: str, names: FreshNames) -> None:
        self._nodes: list[NodeProto] = []
        self._output = output
        self._name = name
        self._names = names

    def node(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node; the name of its output."""
        fused = op_type in ("MatMulNBits", "GatherBlockQuantized")
        output = self._names.fresh(f"{self._output}.{op_type}")
        name = self._name if fused else output
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def finished(self) -> list[NodeProto]:
        """The nodes."""
        self._nodes[-1].output[0] = self._output
        return self._nodes


def _set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
