"""Walking from every DequantizeLinear of a constant weight, or what does the same, to what reads it, and deciding each."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Set
from functools import cache

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants, ReadersGo, stored_in
from ort_qdq_plugin.fusion.counts import MAX_BYTES, Counts
from ort_qdq_plugin.fusion.dequantize import Dequantized, Seen, is_dequantize
from ort_qdq_plugin.fusion.forms import form_of
from ort_qdq_plugin.fusion.integer_kernels import IntegerKernels
from ort_qdq_plugin.fusion.kind import Fuse, Fusion, FusionSettings, Site
from ort_qdq_plugin.fusion.matmul_nbits import bits_that_need_zero_points
from ort_qdq_plugin.fusion.once import DequantizedOnce, choose, dequantized_once, fits_reader
from ort_qdq_plugin.fusion.routes import Routes, check_specified
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, WEIGHT_TYPES, bits_of
from ort_qdq_plugin.model.graph import NodeRef, Scope, scopes
from ort_qdq_plugin.model.messages import NodeProto, int_attribute, text
from ort_qdq_plugin.model.operators import operator_of
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate, StoredTensor
from ort_qdq_plugin.report.weights import Reason, UnfusedWeight
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import NamedTuple, replace

__all__ = ["Matches", "match"]

# Any other reason says more of a weight, and of these a later one.
_SAYS_LITTLE = (None, Reason.FOLDED, Reason.INTEGER_KERNEL, Reason.GRAPH_OUTPUT)
# Of one reader that is left, it forbids that the weight is dequantized once: ONNX Runtime computes no values for it, or has
# them leave the graph, or refuses it, which must not disappear unseen.
_NEVER_ONCE = {Reason.FOLDED, Reason.INTEGER_KERNEL, Reason.GRAPH_OUTPUT, Reason.INVALID, Reason.OPSET}
# Vectors are biases and scales of norms, which cost nothing beside the weights.
_WEIGHT_RANK = 2
# Each matrix of a stack becomes a node or a branch for each product. So many may, and one more for so many bytes of weights:
# a hundred products with one small stack would become tens of thousands.
_MATRICES, _MATRIX_BYTES = 1024, 4096


class Matches(NamedTuple):
    """What was decided for every DequantizeLinear of a constant weight."""

    fusions: tuple[Fusion, ...] = ()
    unfused: tuple[UnfusedWeight, ...] = ()
    once: tuple[DequantizedOnce, ...] = ()  # of those that are not fused, or not all of whose readers are
    folded: Set[NodeRef] = frozenset()  # nodes that compute constants: they go where nothing reads them any more
    stored_bytes: int = 0  # `Counts` of the weights
    float_bytes: int = 0


def match(scope: Scope, locate: Locate, settings: FusionSettings) -> Matches:
    """Decide every DequantizeLinear of a constant weight in a model.

    Shapes, types and attributes decide. Of the bytes only zero points are read, to see whether they are needed at all, and
    the few numbers of constant shapes, axes and small biases. `scope` is that of the model's main graph.
    """
    fusions: list[Fusion] = []
    left: dict[NodeRef, _WeightMatch] = {}
    fused: dict[NodeRef, _WeightMatch] = {}  # with all that reads them
    constants = Constants(locate)
    routes = Routes(constants, Centred(bits_that_need_zero_points(settings)))
    context = _Context(
        locate, constants, settings, routes, IntegerKernels(constants, settings.int8_activations), {}, _Stacks()
    )
    for inner in scopes(scope):
        for index, node in enumerate(inner.nodes):
            if routes.starts_at(inner, node):
                decision = _WeightMatch(inner, index, context)
                fusions += decision.fusions
                if decision.reason is None:
                    fused[inner, index] = decision
                else:
                    left[inner, index] = decision
    # What makes scales for others of them goes with those.
    goes = ReadersGo(constants.folded, fused.keys() | {ref for ref, decision in left.items() if decision.once is not None})
    offered = [once for ref in left if not goes(ref) and (once := left[ref].once)]
    most_bytes = settings.once_bytes() if offered else 0
    chosen = choose(offered, most_bytes)
    goes = ReadersGo(constants.folded, fused.keys() | {once.node_ref for once in chosen})
    unfused, counts = list[UnfusedWeight](), Counts()
    for decision in fused.values():
        decision.count(counts)
    candidates: list[tuple[DequantizedOnce, int | None]] = []  # each with its index among the unfused, if it is there
    for ref, decision in left.items():
        if goes(ref):
            continue
        entries = decision.entries()
        if decision.once is not None:
            candidates.append((decision.once, len(unfused) if entries else None))
        unfused += entries
        if entries or decision.is_fused:
            decision.count(counts)
    if most_bytes:
        _say_which_are_chosen(unfused, candidates, chosen)
    if not fusions and not any(entry.bytes_added for entry in unfused):
        chosen = []  # vectors alone are not worth it
    return Matches(tuple(fusions), tuple(unfused), tuple(chosen), constants.folded, counts.stored_bytes, counts.float_bytes)


def _say_which_are_chosen(
    unfused: list[UnfusedWeight],
    candidates: Iterable[tuple[DequantizedOnce, int | None]],
    chosen: Iterable[DequantizedOnce],
) -> None:
    """Let the entries of candidates say that they are dequantized once, or that the memory is not allowed."""
    where = {candidate.node_ref for candidate in chosen}
    for candidate, index in candidates:
        if index is None:
            continue
        if candidate.node_ref in where:
            unfused[index] = replace(unfused[index], bytes_added=candidate.operand.nbytes, bytes_per_run=0)
        else:
            unfused[index] = replace(unfused[index], reason=Reason.MEMORY)


class _Context(NamedTuple):
    """What all decisions about one model share."""

    locate: Locate
    constants: Constants
    settings: FusionSettings
    routes: Routes
    integer_kernels: IntegerKernels
    fused: dict[NodeRef, Fusion]  # the nodes that fusions replace; it grows
    stacks: _Stacks


class _Stacks:
    """How many matrices of stacks may become nodes of their own, in one model."""

    def __init__(self) -> None:
        self._left = _MATRICES
        self._paid: set[tuple[object, ...]] = set()

    def take(self, weight: StoredTensor, count: int) -> None:
        """Count the matrices of one product; raises NotFusable if they are too many."""
        for stored in stored_in(weight):
            if stored.storage not in self._paid:
                self._paid.add(stored.storage)
                self._left += stored.nbytes // _MATRIX_BYTES
        if count > self._left:
            raise NotFusable(Reason.BATCHED)
        self._left -= count


class _Use(NamedTuple):
    """A node that reads the weight, maybe through others: how it sees it, and under which name."""

    seen: Seen
    node_ref: NodeRef
    name: str
    first: NodeRef  # the reader of the weight itself through which it does


class _WeightMatch:
    """What becomes of a DequantizeLinear, or of a Mul in its place: fusions, and the reason if a reader needs it to stay."""

    def __init__(self, scope: Scope, index: int, context: _Context) -> None:
        self.fusions: list[Fusion] = []
        self.reason: Reason | None = None
        self.once: DequantizedOnce | None = None  # what it is if it may be dequantized once
        # Those for which it is computed, once for each of their inputs that reads it; None stands for the graph's output.
        self._computed_for: set[NodeRef | None] = set()
        self._reasons: set[Reason] = set()  # why readers are left
        self._is_taken = False  # whether a fusion of another weight takes this one, too
        self._context = context
        node = scope.nodes[index]
        output = node.output[0] if node.output else ""
        self._uses = Counter(scope.uses(output))
        self._name = text(node.name or output)
        self._place = (scope, index)
        self._dequantized: Dequantized | None = None
        try:
            start = context.routes.start(scope, node)
            self._dequantized = start.dequantized
            check_specified((scope, index))
        except NotFusable as refusal:
            for node_ref in [None] * scope.is_output(output) + [*scope.uses(output)] or [None]:
                self._leave(node_ref, refusal.reason, node_ref)
            return
        if scope.is_output(output):
            self._leave(None, Reason.GRAPH_OUTPUT, None)
        # Through all that reorders, takes apart, scales or joins the weight, to all that read it or one of these.
        waiting = _readers(start, scope, output)
        while waiting:
            use = waiting.pop()
            try:
                waiting += self._decided(use)
            except NotFusable as refusal:
                fits = fits_reader(use.node_ref, use.name, use.seen.view)
                self._leave(use.node_ref, refusal.reason if fits else Reason.INVALID, use.first)
        if self.reason is None and not self.is_fused:
            self._leave(None, Reason.UNUSED, None)
        if not self._is_folded and self._reasons - {Reason.UNUSED} and _NEVER_ONCE.isdisjoint(self._reasons):
            self.once = dequantized_once(self._place, start.dequantized)

    @property
    def is_fused(self) -> bool:
        """Whether at least one reader is."""
        return bool(self.fusions) or self._is_taken

    def count(self, counts: Counts) -> None:
        """Add it to these."""
        (scope, index), dequantized = self._place, self._dequantized
        if dequantized is not None:
            counts.add(dequantized, is_fused=self.is_fused)
        else:
            counts.add_unread(*self._context.constants.stored(scope, filter(None, scope.nodes[index].input[:3])))

    @property
    def _is_folded(self) -> bool:
        """Whether ONNX Runtime computes it once, when it loads the model, where it stays."""
        scope, index = self._place
        return not is_dequantize(scope.nodes[index])

    @property
    def _form(self) -> str:
        scope, index = self._place
        return form_of(scope, scope.nodes[index], self._dequantized)

    @property
    def _tensor(self) -> str:
        """What is dequantized, by its name."""
        scope, index = self._place
        node = scope.nodes[index]
        return text(self._context.routes.written_out.integers(scope, node).name if self._is_folded else node.input[0])

    def entries(self) -> list[UnfusedWeight]:
        """What the report says where it stays."""
        (scope, index), reason = self._place, self.reason
        assert reason is not None
        if self._is_folded:
            return [self._context.routes.written_out.entry(scope, scope.nodes[index], reason, self._dequantized)]
        times = sum(1 if node_ref is None else self._uses[node_ref] for node_ref in self._computed_for)
        return _unfused(scope, scope.nodes[index], reason, times, self._form, self._context.constants)

    def _leave(self, node_ref: NodeRef | None, reason: Reason, first: NodeRef | None) -> None:
        """Leave the DequantizeLinear to a node that reads it. Of several reasons the one that says most is kept."""
        spared = None if node_ref is None else self._context.integer_kernels.reason(node_ref)
        if spared is None:
            self._computed_for.add(first)
        reason = spared or reason
        self._reasons.add(reason)
        if self.reason in _SAYS_LITTLE and reason not in _SAYS_LITTLE[: _SAYS_LITTLE.index(self.reason)]:
            self.reason = reason

    def _decided(self, use: _Use) -> list[_Use]:
        """Decide one reader. Those that read what it makes of the weight; none if it is fused. Raises NotFusable if not."""
        scope, context = use.node_ref[0], self._context
        spared = context.integer_kernels.reason(use.node_ref)
        if spared is not None and not use.seen.dequantized.has_blocks:
            raise NotFusable(spared)
        fused = context.fused.get(use.node_ref)
        if fused is not None:
            if use.name not in (fused.site.weight, *fused.site.joined):
                raise NotFusable(Reason.CONSUMER)
            self._is_taken = True
            return []
        after = context.routes.after(use.node_ref, use.name, use.seen)
        if after is None:
            fusion = self._fused(use)
            self.fusions.append(fusion)
            context.fused.update(dict.fromkeys(fusion.site.replaced, fusion))
            return []
        if any(scope.is_output(name) for name, _ in after):
            self._leave(use.node_ref, Reason.GRAPH_OUTPUT, use.first)
        elif not any(scope.uses(name) for name, _ in after):
            raise NotFusable(Reason.UNUSED)
        return [reader for name, seen in reversed(after) for reader in _readers(seen, scope, name, use.first)]

    def _fused(self, use: _Use) -> Fusion:
        (scope, index), context = use.node_ref, self._context
        dequantized, view, _ = use.seen
        node, operator = scope.nodes[index], operator_of(scope.nodes[index])
        if dequantized.weight.data_type not in WEIGHT_TYPES:
            raise NotFusable(Reason.WEIGHT_TYPE)
        if operator is None or not operator.fused_by:
            raise NotFusable(Reason.CONSUMER)
        fuse, takes_factors = _kind(operator.fused_by)
        if dequantized.factors and not takes_factors:
            raise NotFusable(Reason.FACTOR)
        if len(node.input) > 1 and node.input[0] == use.name and context.routes.is_weight(scope, node.input[1]):
            # A product of two weights: the right one is what is fused, and the left one stands for the activation.
            raise NotFusable(Reason.CONSUMER)
        output = node.output[0] if node.output else ""
        site = Site(
            dequantize=self._name,
            weight=use.name,
            kind=node.op_type,
            name=text(node.name or output),
            output=output,
            replaced=(use.node_ref,),
            form=self._form,
            tensor=self._tensor,
            stored=() if self._dequantized is None else self._dequantized.tensors,
        )
        fusion = fuse(site, dequantized, view, context.settings, context.locate)
        for node_ref in fusion.site.replaced:
            check_specified(node_ref)
        matrices = getattr(fusion, "size", 1)  # of a stack, which few kinds take
        if matrices > 1:
            context.stacks.take(dequantized.weight, matrices)
        if self._is_folded:
            context.routes.written_out.check_faster(fusion, context.settings)
        return fusion


@cache
def _kind(name: str) -> tuple[Fuse, bool]:
    """The `fuse` of a module of this folder, and whether it takes factors. Models need few of these modules."""
    with fork_lock:
        module = importlib.import_module(f"ort_qdq_plugin.fusion.{name}")
    return module.fuse, getattr(module, "TAKES_FACTORS", False)


def _readers(seen: Seen, scope: Scope, name: str, first: NodeRef | None = None) -> list[_Use]:
    """The readers of a value, the first one last. `first`: the node through which they read it, if there is one."""
    uses = reversed(dict.fromkeys(scope.uses(name)))
    return [_Use(seen, node_ref, name, first or node_ref) for node_ref in uses]


def _unfused(
    scope: Scope, node: NodeProto, reason: Reason, times: int, form: str, constants: Constants
) -> list[UnfusedWeight]:
    """What the report says of a DequantizeLinear that is computed so many times; nothing where it is of a vector."""
    operands = [constants.outline(scope, name) for name in node.input[:3] if name]
    weight, scales = operands[0], operands[1]
    if weight is not None and len(weight.dims) < _WEIGHT_RANK:
        return []
    has_shape = weight is not None and len(weight.dims) <= MAX_RANK and min(weight.dims, default=0) >= 0
    shape = tuple(weight.dims) if weight is not None and has_shape else (0,)
    element_bytes = 4 if scales is None or scales.data_type == FLOAT else 2
    entry = UnfusedWeight(
        dequantize=text(node.name or node.output[0]),
        weight=text(node.input[0]),
        reason=reason,
        shape=shape,
        bits=bits_of(weight.data_type) if weight is not None and weight.data_type in ELEMENTS else 0,
        block_size=int_attribute(node, "block_size"),
        stored_bytes=min(constants.stored_bytes(scope, filter(None, node.input[:3])), MAX_BYTES),
        bytes_per_run=min(math.prod(shape) * element_bytes * times, MAX_BYTES),
        form=form,
    )
    return [entry]
