"""The constants of a model: tensors that it stores, and those that it computes from them by nodes.

ONNX Runtime carries out such nodes when it loads a model (constant folding), and fuses what is left. Here nothing is carried
out: a computed constant is an expression (`folding`). Its elements are computed when the operand of a fused node is packed.
"""

from __future__ import annotations

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.folding.computed import as_tensor
from ort_qdq_plugin.folding.expression import Expression, Stored
from ort_qdq_plugin.fusion.computing import Given, result_of
from ort_qdq_plugin.fusion.validity import is_as_specified
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.tensors import Locate, StoredTensor
from ort_qdq_plugin.report.weights import Reason

__all__ = ["Constants"]

# Of an expression: how many nodes deep, and how many it takes in all, each counted as often as it is used. Real ones have a
# dozen. It bounds the time that an element takes.
_MAX_DEPTH, _MAX_NODES = 48, 256


class Constants:
    """Answers for one model, each found once. `locate` finds the bytes of stored tensors."""

    def __init__(self, locate: Locate) -> None:
        self.locate = locate
        self._known: dict[tuple[Scope, str], _Found] = {}

    def tensor(self, scope: Scope, name: str) -> StoredTensor:
        """The constant called `name` in a scope, stored or computed.

        Raises:
            NotFusable: It is none, or it is computed in a way that is not followed.
            ModelError, OSError: It is not all there.
        """
        stored = scope.constant(name)
        if stored is not None:
            return self.locate(stored)
        return as_tensor(self.expression(scope, name), name)

    def expression(self, scope: Scope, name: str) -> Expression:
        """As `tensor`, as an expression."""
        found = self._found(scope, name, 0)
        if isinstance(found, Reason):
            raise NotFusable(found)
        return found

    def is_constant(self, scope: Scope, name: str) -> bool:
        """Whether a value is computed from nothing but the model's own tensors, or is one of them."""
        return scope.constant(name) is not None or self._found(scope, name, 0) is not Reason.NOT_CONSTANT

    def _found(self, scope: Scope, name: str, depth: int) -> _Found:
        definer = scope.definer(name)
        key = (definer, name)
        if key not in self._known:
            if depth > _MAX_DEPTH:
                return Reason.COMPUTED
            self._known[key] = Reason.NOT_CONSTANT  # so that a cycle ends here
            self._known[key] = self._find(definer, name, depth)
        return self._known[key]

    def _find(self, scope: Scope, name: str, depth: int) -> _Found:
        stored = scope.constant(name)
        if stored is not None:
            try:
                return Stored(self.locate(stored))
            except (ModelError, OSError):
                return Reason.INVALID
        if scope.is_overridable(name):
            return Reason.OVERRIDABLE
        found = scope.producer(name)
        if found is None or not any(found[2].input):
            return Reason.NOT_CONSTANT
        scope, index, node = found
        inputs = [self._found(scope, given, depth + 1) if given else None for given in node.input]
        reasons = {given for given in inputs if isinstance(given, Reason)}
        if reasons:
            # What is not constant at all says most.
            return next((reason for reason in _FIRST if reason in reasons), Reason.COMPUTED)
        if not is_as_specified(scope, index, scope.opset):
            return Reason.COMPUTED
        try:
            result = result_of(Given(scope, node, tuple(inputs), self.locate), list(node.output).index(name))  # type: ignore[arg-type]
        except ModelError:
            return Reason.COMPUTED
        return result if min(result.shape, default=1) > 0 and _nodes(result) <= _MAX_NODES else Reason.COMPUTED


_Found = Expression | Reason
_FIRST = (Reason.NOT_CONSTANT, Reason.OVERRIDABLE, Reason.INVALID)


def _nodes(expression: Expression) -> int:
    return 1 + sum(map(_nodes, expression.operands))
