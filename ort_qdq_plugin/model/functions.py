"""Model-local functions: what inlining them would give, counted before it is done."""

from __future__ import annotations

from collections.abc import Iterable

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.messages import FunctionProto, ModelProto, NodeProto, subgraphs
from ort_qdq_plugin.values import NamedTuple

__all__ = ["check_functions"]

# Functions may call each other: 2**30 nodes fit into 2 KB.
_MAX_INLINED_BYTES = 64 << 20
_MAX_CALL_DEPTH = 100  # more than any exporter writes
_NODE_BYTES = 100  # what a node takes in memory beside its names and attributes


def check_functions(model: ModelProto) -> None:
    """Raise ModelError where inlining the model's functions would never end, make it huge, or hide what is wrong with it."""
    if not model.functions:
        return
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if not all(function.domain in versions for function in model.functions):
        raise ModelError("a function's domain is not imported")
    for function in model.functions:
        imported = {entry.domain for entry in function.opset_import}
        if any(entry.version != versions.get(entry.domain, entry.version) for entry in function.opset_import):
            raise ModelError(f"function {function.name[:100]!r} is of another opset than the model")
        if not all(node.domain in imported for node in function.node):
            raise ModelError(f"function {function.name[:100]!r} does not import the domains of its operators")
        if any(node.op_type == "Constant" and node.input for node in function.node):
            raise ModelError(f"function {function.name[:100]!r} has a Constant with inputs")  # inlining takes it away
    calls = _Calls(model.functions)
    small = {code for code, element in ELEMENTS.items() if element.bits < 8}
    packed = {tensor.name for tensor in model.graph.initializer if tensor.data_type in small}
    if not all(calls.shows_types_of(node, packed) for node in model.graph.node):
        raise ModelError("elements of less than a byte go to a function that does not say so, which ONNX Runtime refuses")
    # Inlining takes these names away.
    names = [node.name for node in model.graph.node if node.name]
    if len(names) != len(set(names)):
        raise ModelError("two nodes have the same name")
    inlined = calls.inlined(model.graph.node, 0)
    # Inside a function, names and references to attributes stand for what the caller gives.
    nbytes = inlined.nbytes + inlined.names * calls.longest_name + inlined.references * calls.largest_call
    if nbytes > _MAX_INLINED_BYTES:
        raise ModelError(f"functions that take up to {nbytes} bytes once they are inlined")


class _Size(NamedTuple):
    """What calls are replaced by: bytes, names read and written, references to attributes; and through how many levels."""

    nbytes: int = 0
    names: int = 0
    references: int = 0
    levels: int = 0

    def plus(self, other: _Size, levels: int) -> _Size:
        """Both one after the other, where `other` is `levels` levels further in."""
        sums = (self.nbytes + other.nbytes, self.names + other.names, self.references + other.references)
        return _Size(*sums, max(self.levels, other.levels + levels))


class _Calls:
    """Functions by name, each counted once. `longest_name`, `largest_call`: of the nodes seen, in characters and bytes."""

    def __init__(self, functions: Iterable[FunctionProto]) -> None:
        self._functions: dict[tuple[str, str, str], FunctionProto] = {}
        for function in functions:
            if self._functions.setdefault((function.domain, function.name, function.overload), function) is not function:
                raise ModelError(f"two functions are called {function.name[:100]!r}")
        self._known: dict[tuple[str, str, str], _Size] = {}
        self._read: dict[tuple[str, str, str], set[str]] = {}
        self.longest_name = 0
        self.largest_call = 0

    def shows_types_of(self, node: NodeProto, names: set[str]) -> bool:
        """Whether ONNX Runtime sees which types a function takes for the inputs of its call `node` that are in `names`.

        It does where an operator of the function reads them, but not through further functions.
        """
        key = (node.domain, node.op_type, node.overload)
        if key not in self._functions or names.isdisjoint(node.input):
            return True
        own = self._functions[key].input
        return self._read_by_operators(key) >= {own[at] for at, name in enumerate(node.input[: len(own)]) if name in names}

    def _read_by_operators(self, key: tuple[str, str, str]) -> set[str]:
        """What the nodes of a function read, but for what others of its nodes hand to functions."""
        if key not in self._read:
            readers: dict[bool, set[str]] = {True: set(), False: set()}
            for node in self._functions[key].node:
                readers[(node.domain, node.op_type, node.overload) in self._functions].update(node.input)
            self._read[key] = readers[False] - readers[True]
        return self._read[key]

    def inlined(self, nodes: Iterable[NodeProto], depth: int) -> _Size:
        """What the calls among `nodes`, and in graphs inside them, are replaced by."""
        size = _Size()
        for node in nodes:
            self.longest_name = max(self.longest_name, *map(len, node.input), *map(len, node.output), 0)
            key = (node.domain, node.op_type, node.overload)
            if key in self._functions:
                if any(attr.HasField("g") for attr in node.attribute):
                    raise ModelError(f"function {node.op_type[:100]!r} is given a graph")
                self.largest_call = max(self.largest_call, node.ByteSize())
                size = size.plus(self._of(key, depth + 1), 1)
            for attr in node.attribute:
                if attr.ref_attr_name:
                    size = size.plus(_Size(references=1), 0)
            for graph in subgraphs(node):
                size = size.plus(self.inlined(graph.node, depth + 1), 1)
        return size

    def _of(self, key: tuple[str, str, str], depth: int) -> _Size:
        """The same for one call of a function."""
        known = self._known.get(key)
        if depth + (0 if known is None else known.levels) > _MAX_CALL_DEPTH:
            raise ModelError(f"function {key[1][:100]!r} calls itself, or through more than {_MAX_CALL_DEPTH} others")
        if known is None:
            function = self._functions[key]
            names = sum(len(node.input) + len(node.output) for node in function.node)
            body = _Size(function.ByteSize() + _NODE_BYTES * len(function.node), names)
            known = self._known[key] = body.plus(self.inlined(function.node, depth), 0)
        return known
