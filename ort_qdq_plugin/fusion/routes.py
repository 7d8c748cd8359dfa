"""From a DequantizeLinear to those who read its result: what the nodes on the way make of it.

They reorder its elements (`view`), split its axes (`regrouped`), repeat it for each batch, take a part of it (`parts`),
multiply it by constants (`factors`), or put it beside others (`joined`). Each is done to the integers, the scales and the
zero points instead. Models need few of these modules, which are imported for the first node that does.

Format facts: Mul, Div and Expand of the ONNX specification, and those that the modules named have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin.errors import ModelError, NotFusable
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import Seen, has_constant_weight, is_dequantize, read_dequantize
from ort_qdq_plugin.fusion.steps import may_end_steps
from ort_qdq_plugin.fusion.validity import is_as_specified
from ort_qdq_plugin.fusion.view import View, follow
from ort_qdq_plugin.model.computed import computed_once
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, INT32, INT64
from ort_qdq_plugin.model.graph import NodeRef, Scope
from ort_qdq_plugin.model.messages import NodeProto, int_attribute, is_standard
from ort_qdq_plugin.model.operators import OPERATORS, operator_of
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from ort_qdq_plugin.fusion.written_out import WrittenOut

__all__ = ["Routes", "check_specified"]

# Nodes that may make new operands on the way to one reader, those of all weights that are joined together: each is another
# step of computing an element. Real models have up to some dozens.
_MAX_NODES = 128

_VIEWS = {row.op_type for row in OPERATORS if row.role == "view"}
_ON_THE_WAY = _VIEWS | {"Concat", "Div", "Expand", "Gather", "Mul", "Slice", "Split"}

_MATRIX = 2  # its rank

_MAX_DEPTH = 32  # nodes between a Concat and the DequantizeLinear of a weight that it joins
# Indices, or lengths, in one constant, and in all that are read for one model.
_MAX_NUMBERS, _MAX_NUMBERS_READ = 4096, 1 << 22
_MAX_AHEAD = 32  # values, and readers of each, that are looked at to see what becomes of a part


class Routes:
    """Answers for one model."""

    def __init__(self, constants: Constants, is_centred: Centred) -> None:
        self._constants = constants
        self._is_centred = is_centred
        self._joined: dict[NodeRef, Seen | Reason] = {}
        self._numbers_left = _MAX_NUMBERS_READ
        self._made_of: dict[tuple[Scope, str], Seen | Reason] = {}  # values that were asked for as parts of joints

    @computed_once
    def written_out(self) -> WrittenOut:
        """What dequantizes in several steps."""
        with fork_lock:
            from ort_qdq_plugin.fusion.written_out import WrittenOut
        return WrittenOut(self._constants)

    def starts_at(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a node dequantizes a constant weight: a DequantizeLinear, or the last step of one that is written out."""
        if is_dequantize(node):
            return has_constant_weight(scope, node, self._constants)
        return may_end_steps(scope, node, self._constants) and self.written_out.ends_at(scope, node)

    def start(self, scope: Scope, node: NodeProto) -> Seen:
        """What such a node makes of its constants; raises NotFusable where it is not as it should be."""
        if not is_dequantize(node):
            return Seen(*self.written_out.read(scope, node, self._is_centred))
        dequantized = read_dequantize(scope, node, self._constants, self._is_centred)
        return Seen(dequantized, dequantized.view)

    def after(self, node_ref: NodeRef, name: str, seen: Seen) -> list[tuple[str, Seen]] | None:
        """The values that a node makes of a weight which it reads as `name`; None if it does something else with it.

        Raises:
            NotFusable: The node is one of those that can be followed, but does something that cannot.
        """
        scope, index = node_ref
        node = scope.nodes[index]
        if node.op_type not in _ON_THE_WAY or not is_standard(node) or not any(node.output):
            return None
        check_specified(node_ref)
        if node.op_type == "Concat":
            found: list[Seen] | None = [self._joint(node_ref)]
        else:
            found = self._made(scope, node, name, seen)
        if found is None:
            return None
        return [(output, made) for output, made in zip(node.output, found, strict=True) if output]

    def _made(self, scope: Scope, node: NodeProto, name: str, seen: Seen) -> list[Seen] | None:
        """What each output of a node is that reads one weight."""
        kind = node.op_type
        if kind in _VIEWS:
            view = follow(seen.view, scope, node, self._constants.locate) if node.input[0] == name else None
            return None if view is None else [_seen_as(seen, view)]
        longer = seen._replace(nodes=seen.nodes + 1)
        if longer.nodes > _MAX_NODES:
            raise NotFusable(Reason.COMPUTED)
        if kind in ("Mul", "Div"):
            return self._multiplied(scope, node, name, longer)
        if node.input[0] != name:
            return None

        def numbers(name: str) -> tuple[list[int], int]:
            return self._numbers(scope, name)

        if kind == "Expand":
            return [self._expanded(scope, node, seen)]
        if kind == "Gather" and not self._is_of_a_product(scope, node):
            return None
        with fork_lock:
            from ort_qdq_plugin.fusion.parts import gathered, sliced, split
        if kind == "Split":
            return split(longer, node, scope.opset, numbers)
        return [sliced(longer, node, scope.opset, numbers) if kind == "Slice" else gathered(longer, node, numbers)]

    def _multiplied(self, scope: Scope, node: NodeProto, name: str, seen: Seen) -> list[Seen] | None:
        """A weight times a constant, or divided by it."""
        others = [given for given in node.input if given != name]
        is_left = node.input[0] == name
        # Attributes are those of the first opsets, which broadcast in another way.
        if len(node.input) != 2 or len(others) != 1 or node.attribute or (node.op_type == "Div" and not is_left):
            return None
        if not self._constants.is_constant(scope, others[0]):
            return None
        with fork_lock:
            from ort_qdq_plugin.fusion.factors import constant, divided, factor_of, with_factor
        try:
            factor = factor_of(self._constants.expression(scope, others[0]), seen.view)
        except ModelError as error:
            raise NotFusable(Reason.INVALID) from error
        if node.op_type == "Div":
            factor = divided(constant(1, FLOAT, ()), factor)
        dequantized = seen.dequantized
        return [seen._replace(dequantized=dequantized._replace(factors=with_factor(dequantized.factors, factor)))]

    def _expanded(self, scope: Scope, node: NodeProto, seen: Seen) -> Seen:
        """A weight that is repeated for each batch of activations: products repeat it by themselves.

        Raises:
            NotFusable: It is not known that all that reads the result does so.
        """
        wanted, shape = self._numbers(scope, node.input[1])[0], seen.view.shape
        given = (1,) * (len(wanted) - len(shape)) + shape
        matrix = given[-_MATRIX:]
        repeated = [max(one, two) for one, two in zip(given[:-_MATRIX], wanted, strict=False)]
        is_of_batches = len(given) == len(wanted) >= _MATRIX and set(given[:-_MATRIX]) <= {1} and min(wanted) > 0
        if not is_of_batches or any(size not in (1, has) for size, has in zip(wanted[-_MATRIX:], matrix, strict=True)):
            raise NotFusable(Reason.BATCHED)
        for reader, index in scope.uses(node.output[0]):
            product = reader.nodes[index]
            activation = reader.known_shape(product.input[0]) or ()
            batches = list(activation[:-_MATRIX])[-len(repeated) :] if repeated else []
            is_right = product.op_type == "MatMul" and list(product.input).index(node.output[0]) == 1
            if not is_right or batches != repeated:
                raise NotFusable(Reason.BATCHED)
        return seen._replace(view=seen.view.reshaped((*(1 for _ in repeated), *matrix)))

    def _joint(self, node_ref: NodeRef) -> Seen:
        """What a Concat makes of its inputs, the same whichever of them is asked about."""
        if node_ref not in self._joined:
            with fork_lock:
                from ort_qdq_plugin.fusion.joined import joined
            scope, index = node_ref
            node = scope.nodes[index]
            self._joined[node_ref] = Reason.JOINED  # so that a cycle ends here
            try:
                if len(node.input) > _MAX_NODES:
                    raise NotFusable(Reason.COMPUTED)
                parts = [self.weight(scope, name) for name in node.input]
                if sum(part.nodes + 1 for part in parts) > _MAX_NODES:
                    raise NotFusable(Reason.COMPUTED)
                self._joined[node_ref] = joined(parts, int_attribute(node, "axis", 1))
            except NotFusable as refusal:
                self._joined[node_ref] = refusal.reason
        found = self._joined[node_ref]
        if isinstance(found, Reason):
            raise NotFusable(found)
        return found

    def weight(self, scope: Scope, name: str, depth: int = _MAX_DEPTH) -> Seen:
        """The weight that a value is; raises NotFusable if it is none, or not within so many nodes."""
        found = scope.producer(name) if name and depth else None
        if found is None:
            raise NotFusable(Reason.JOINED)
        scope, index, node = found
        if self.starts_at(scope, node):
            check_specified((scope, index))
            return self.start(scope, node)
        if node.op_type == "Concat" and is_standard(node):
            check_specified((scope, index))
            return self._joint((scope, index))
        if (scope, name) not in self._made_of:
            read = _read_by(scope, node)
            if read is None:
                raise NotFusable(Reason.JOINED)
            seen = self.weight(scope, read, depth - 1)
            # A Split may have thousands of outputs: all are found in one go.
            self._made_of.update(dict.fromkeys(((scope, output) for output in node.output), Reason.JOINED))
            try:
                after = self.after((scope, index), read, seen) or ()
                self._made_of.update({(scope, output): made for output, made in after})
            except NotFusable as refusal:
                self._made_of.update(dict.fromkeys(((scope, output) for output in node.output), refusal.reason))
        made = self._made_of[scope, name]
        if isinstance(made, Reason):
            raise NotFusable(made)
        return made

    def is_weight(self, scope: Scope, name: str) -> bool:
        """Whether a value is a weight, as far as that can be followed."""
        try:
            self.weight(scope, name)
        except NotFusable:
            return False
        return True

    def _is_of_a_product(self, scope: Scope, node: NodeProto) -> bool:
        """Whether a Gather takes a part of a weight, which a product reads, by constant indices; others are lookups."""
        if len(node.input) != 2 or not self._constants.is_constant(scope, node.input[1]):
            return False
        ahead = [(scope, node.output[0])]
        for inner, name in ahead:
            for reader, index in inner.uses(name)[:_MAX_AHEAD]:
                after = reader.nodes[index]
                operator = operator_of(after)
                if operator is None or not after.output:
                    continue
                if operator.role == "reader" and after.op_type != "Gather":
                    # Of a product of two weights, the left one stands for the activation.
                    return after.input[0] != name or not self.is_weight(reader, after.input[1])
                if operator.role in ("view", "folded", "reader") and len(ahead) < _MAX_AHEAD:
                    ahead += [(reader, output) for output in after.output if output]
        return False

    def _numbers(self, scope: Scope, name: str) -> tuple[list[int], int]:
        """As `parts.Numbers`, in a scope."""
        if not self._constants.is_constant(scope, name):
            raise NotFusable(Reason.PART)
        try:
            tensor = self._constants.tensor(scope, name)
            if tensor.data_type not in (INT32, INT64) or tensor.elements > _MAX_NUMBERS or len(tensor.shape) > 1:
                raise NotFusable(Reason.PART)
            self._numbers_left -= tensor.elements
            if self._numbers_left < 0:
                raise NotFusable(Reason.COMPUTED)
            values = tensor.read().view(ELEMENTS[tensor.data_type].numpy)
        except (ModelError, OSError) as error:
            raise NotFusable(Reason.INVALID) from error
        return np.asarray(values).tolist(), len(tensor.shape)


def _seen_as(seen: Seen, view: View) -> Seen:
    """A weight in another view of it, or of its axes split."""
    if view.stored_shape == seen.view.stored_shape:
        return seen._replace(view=view)
    with fork_lock:
        from ort_qdq_plugin.fusion.regrouped import split
    return seen._replace(dequantized=split(seen.dequantized, view.stored_shape), view=view)


def check_specified(node_ref: NodeRef) -> None:
    """Raise NotFusable for a node that ONNX Runtime would refuse: a fusion must not hide it."""
    scope, index = node_ref
    if not is_as_specified(scope, index, scope.opset):
        raise NotFusable(Reason.OPSET)


def _read_by(scope: Scope, node: NodeProto) -> str | None:
    """The input of a node on the way that may be a weight."""
    if node.op_type in ("Mul", "Div") and len(node.input) > 1 and scope.constant(node.input[0]) is not None:
        return str(node.input[1])
    return node.input[0] if node.input else None
