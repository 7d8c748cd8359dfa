"""The constants of a model: tensors that it stores, and those that it computes from them by nodes.

ONNX Runtime carries out such nodes when it loads a model (constant folding), and fuses what is left. Here nothing is carried
out: a computed constant is an expression (`folding`). Its elements are computed when the operand of a fused node is packed.

What expressions need is imported when a model has the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from contextlib import suppress
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.fusion.validity import is_as_specified
from ort_qdq_plugin.model.graph import NodeRef, Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, subgraphs
from ort_qdq_plugin.model.tensors import Locate, StoredTensor, shape_of, tensor_bytes
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from ort_qdq_plugin.folding.expression import Expression

__all__ = ["Constants", "ReadersGo", "bytes_stored", "stored_in"]

# Of an expression: how many nodes deep it is; how many are computed for an element; and how many it has in all, each counted
# as often as it is used. Real ones have a dozen. It bounds the time for an element, and for comparing expressions.
_MAX_DEPTH, _MAX_STEPS, _MAX_NODES = 64, 256, 4096

# A result is at most this many times as large as what it is computed from, or has this many bytes. Scales and zero points
# may be made of a single number.
_GROWTH, _GROWTH_BYTES = 16, 64 << 20

# Their results differ from run to run.
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


class Constants:
    """Answers for one model, each found once. `locate` finds the bytes of stored tensors."""

    def __init__(self, locate: Locate) -> None:
        self.locate = locate
        self.folded: set[NodeRef] = set()
        """The nodes whose results are expressions: all inputs are constant, and nothing is wrong with them."""
        self._known: dict[tuple[Scope, str], _Computed | Reason] = {}
        self._at_run_time: dict[Scope, set[str]] = {}

    def tensor(self, scope: Scope, name: str) -> StoredTensor:
        """The constant called `name` in a scope, stored or computed.

        Raises:
            NotFusable: It is none, or it is computed in a way that is not followed.
            ModelError, OSError: It is not all there.
        """
        stored = scope.constant(name)
        if stored is not None:
            return self.locate(stored)
        expression = self.expression(scope, name)
        with fork_lock:
            from ort_qdq_plugin.folding.computed import as_tensor
        return as_tensor(expression, name)

    def expression(self, scope: Scope, name: str) -> Expression:
        """As `tensor`, as an expression."""
        found = self._found(scope, name)
        if isinstance(found, Reason):
            raise NotFusable(found)
        return found.expression

    def is_constant(self, scope: Scope, name: str) -> bool:
        """Whether a value is computed from nothing but the model's own tensors, or is one of them."""
        return scope.constant(name) is not None or self._found(scope, name) is not Reason.NOT_CONSTANT

    def is_made_at_run_time(self, scope: Scope, name: str) -> bool:
        """Whether a value is certainly no constant. This is known of most, and costs next to nothing."""
        return name in self._computed_at_run_time(scope.definer(name))

    def outline(self, scope: Scope, name: str) -> TensorProto | None:
        """The type and the dimensions of a constant, stated or computed; None if it is none."""
        stored = scope.constant(name)
        found = None if stored is not None else self._found(scope, name)
        if not isinstance(found, _Computed):
            return stored
        return TensorProto(data_type=found.expression.data_type, dims=found.expression.shape)

    def stored_bytes(self, scope: Scope, names: Iterable[str]) -> int:
        """Bytes that the model stores of constants, or of what they are computed from, each tensor counted once; what is
        not known counts as 0."""
        found, missing = self.stored(scope, names)
        return bytes_stored(found) + missing

    def stored(self, scope: Scope, names: Iterable[str]) -> tuple[list[StoredTensor], int]:
        """What the model stores of constants, or of what they are computed from; and the bytes of what should be there, but
        is not."""
        found: list[StoredTensor] = []
        missing = 0
        for name in names:
            try:
                found += stored_in(self.tensor(scope, name))
            except (ModelError, OSError, NotFusable):
                stored = scope.constant(name)
                with suppress(ModelError):
                    missing += 0 if stored is None else tensor_bytes(stored.data_type, shape_of(stored))
        return found, missing

    def _found(self, scope: Scope, name: str) -> _Computed | Reason:
        first = (scope.definer(name), name)
        if self.is_made_at_run_time(scope, name):
            return Reason.NOT_CONSTANT
        # Chains of nodes may be of any length: what a value needs is found before it.
        waiting, begun = [first], set()
        while waiting:
            key = waiting[-1]
            if key not in self._known:
                begun.add(key)
                self._known[key] = Reason.NOT_CONSTANT  # so that a cycle ends here
                waiting += self._needed_by(*key)
                continue
            waiting.pop()
            if key in begun:
                begun.remove(key)
                self._known[key] = self._find(*key)
        return self._known[first]

    def _computed_at_run_time(self, scope: Scope) -> set[str]:
        """Values of a graph that are made of its inputs: most of those that are no constants, found in one go."""
        if scope not in self._at_run_time:
            values = {value.name for value in scope.graph.input} - scope.initializers.keys()
            for node in scope.nodes:
                if not values.isdisjoint(node.input):
                    values.update(node.output)
            values.discard("")
            self._at_run_time[scope] = values
        return self._at_run_time[scope]

    def _needed_by(self, scope: Scope, name: str) -> list[tuple[Scope, str]]:
        """The values that it depends on what a value is."""
        found = None if name in scope.initializers else scope.producer(name)
        if found is None or _is_never_constant(found[2]) or name in self._computed_at_run_time(scope):
            return []
        values = [(scope.definer(given), given) for given in found[2].input if given]
        return [value for value in values if value not in self._known]

    def _find(self, scope: Scope, name: str) -> _Computed | Reason:
        """What a value is, once that is known of all that it needs."""
        stored = scope.constant(name)
        if stored is not None:
            with fork_lock:
                from ort_qdq_plugin.folding.expression import Stored
            try:
                tensor = self.locate(stored)
                return _Computed(Stored(tensor), 0, 1, 1, tensor.nbytes)
            except (ModelError, OSError):
                return Reason.INVALID
        if scope.is_overridable(name):
            return Reason.OVERRIDABLE
        found = scope.producer(name)
        if found is None or _is_never_constant(found[2]) or name in self._computed_at_run_time(scope):
            return Reason.NOT_CONSTANT
        scope, index, node = found
        inputs = [self._known[scope.definer(given), given] for given in node.input if given]
        reasons = {given for given in inputs if isinstance(given, Reason)}
        if reasons:
            # What is not constant at all says most.
            return next((reason for reason in _FIRST if reason in reasons), Reason.COMPUTED)
        operands = [given for given in inputs if not isinstance(given, Reason)]
        try:
            result = self._computed((scope, index), operands, name)
        except (ModelError, OSError):
            return Reason.COMPUTED
        self.folded.add((scope, index))
        return result

    def _computed(self, node_ref: NodeRef, operands: list[_Computed], name: str) -> _Computed:
        """What a node makes of its operands.

        Raises:
            ModelError: It is not followed, or not as it should be, or it would take too much.
        """
        with fork_lock:
            from ort_qdq_plugin.fusion.computing import result_of
            from ort_qdq_plugin.fusion.rearranging import Given
        scope, index = node_ref
        node = scope.nodes[index]
        left = iter([operand.expression for operand in operands])
        given = Given(node, tuple(next(left) if one else None for one in node.input), scope.opset)
        if not is_as_specified(scope, index, scope.opset, [one.data_type for one in given.present]):
            raise ModelError(f"{node.op_type} is not as specified")
        result = result_of(given, list(node.output).index(name))
        if any(scope.stated_type(output) not in (None, result.data_type) for output in node.output):
            raise ModelError(f"{name}: stated to be of another type")
        steps = [operand.steps for operand in operands]
        computed = _Computed(
            result,
            max(operand.depth for operand in operands) + 1,
            # Of what is concatenated, an element is computed from one alone.
            (max(steps) if node.op_type == "Concat" else sum(steps)) + 1,
            sum(operand.nodes for operand in operands) + 1,
            sum(operand.leaf_bytes for operand in operands),
        )
        if computed.depth > _MAX_DEPTH or computed.steps > _MAX_STEPS or computed.nodes > _MAX_NODES:
            raise ModelError(f"{name}: computed in too many steps")
        if min(result.shape, default=1) <= 0:
            raise ModelError(f"{name}: no elements")
        nbytes = tensor_bytes(result.data_type, result.shape)
        if nbytes > max(_GROWTH_BYTES, _GROWTH * computed.leaf_bytes):
            raise ModelError(f"{name}: {nbytes} bytes made of a few")
        return computed


def stored_in(source: StoredTensor) -> Iterable[StoredTensor]:
    """The stored tensors that a tensor is computed from, once for each use; itself if it is stored."""
    if source.source.is_stored:
        return [source]
    with fork_lock:
        from ort_qdq_plugin.folding.computed import stored_in
    return stored_in(source)


def bytes_stored(tensors: Iterable[StoredTensor]) -> int:
    """Bytes of stored tensors, or of parts of them, each byte counted once."""
    pieces: dict[object, list[tuple[int, int]]] = {}
    for tensor in tensors:
        pieces.setdefault(tensor.source.identity, []).append((tensor.offset, tensor.offset + tensor.nbytes))
    total = 0
    for of_source in pieces.values():
        reached = 0
        for start, end in sorted(of_source):
            total += max(0, end - max(start, reached))
            reached = max(reached, end)
    return total


class ReadersGo:
    """Whether all that reads a node's results goes. `ended`: DequantizeLinears whose results something else takes the place
    of; `folded`: nodes that go as soon as all that reads them does."""

    def __init__(self, folded: Set[NodeRef], ended: Set[NodeRef]) -> None:
        self._folded, self._ended = folded, ended
        self._known: dict[NodeRef, bool] = {}

    def __call__(self, node_ref: NodeRef) -> bool:
        if node_ref not in self._known:
            scope, index = node_ref
            outputs = [name for name in scope.nodes[index].output if name]
            readers = [reader for name in outputs for reader in scope.uses(name)]
            # No further than expressions are deep.
            self._known[node_ref] = (
                bool(readers)
                and not any(scope.is_output(name) for name in outputs)
                and all(one in self._ended or (one in self._folded and self(one)) for one in readers)
            )
        return self._known[node_ref]


class _Computed(NamedTuple):
    """A constant, and what it takes."""

    expression: Expression
    depth: int
    steps: int
    nodes: int
    leaf_bytes: int  # of the stored tensors that it is computed from, each counted as often as it is used


_FIRST = (Reason.NOT_CONSTANT, Reason.OVERRIDABLE, Reason.INVALID)


def _is_never_constant(node: NodeProto) -> bool:
    """Whether a node's results are not constant, whatever it reads."""
    return not any(node.input) or node.op_type in _RANDOM or bool(subgraphs(node))
