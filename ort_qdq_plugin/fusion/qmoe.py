"""DequantizeLinear -> [Transpose | Cast | ...]* -> MoE, for all of its weights at once, as one QMoE.

Format facts: ``com.microsoft.MoE`` and ``com.microsoft.QMoE`` (ONNX Runtime's contrib operators), and their CPU kernels in
ONNX Runtime 1.32. Weights are uint8 [E, N, bytes of a row], elements from the low bits up; scales [E, N, blocks]; zero
points uint8 [E, N, bytes that a row of them takes]. Elements are unsigned. Without zero points they are centred on
2**(bits-1). Blocks are along K, of a power of two from 16 that divides it. Without ``block_size`` a row has one scale, and
scales and zero points have no last axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import Dequantized, is_dequantize, read_dequantize
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.kind import FusionSettings, Site, report_entry
from ort_qdq_plugin.fusion.matmul_nbits import ROUNDS
from ort_qdq_plugin.fusion.validity import is_as_specified
from ort_qdq_plugin.fusion.view import View, follow
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16, UINT8, bits_of
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import AttributeProto, NodeProto, attributes, int_attribute
from ort_qdq_plugin.model.operands import Conversion, Operand, Operands, Order, zeros
from ort_qdq_plugin.model.operators import role_of
from ort_qdq_plugin.model.releases import SPARSE_EXPERTS, has
from ort_qdq_plugin.model.tensors import Locate
from ort_qdq_plugin.report.weights import FusedWeight, Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["MoEFusion", "fuse"]

_SOFTMAX_OF_AN_AXIS_SINCE = 13  # the opset; before, it is one over all axes from the given one on

_STACK = 3  # the rank of a weight
_MAX_VIEWS = 64  # nodes between a DequantizeLinear and a MoE
_BIASES = {"fc1": 3, "fc2": 5}  # the inputs of MoE; each weight comes before its bias
_MAX_INPUTS = 6  # what comes behind these is a third layer, which no kernel on the CPU takes
_ACTIVATIONS = ("relu", "gelu", "silu", "identity")
_GATED, _INTERLEAVED = "swiglu", 1  # an activation of two values, and the one order of them that the CPU takes

_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256
_PASSED_ON = ("k", "activation_type", "normalize_routing_weights", "activation_alpha", "activation_beta", "swiglu_fusion",
              "swiglu_limit")  # fmt: skip


class _Weight(NamedTuple):
    """One of a MoE's weights: a stack [E, N, K], as the MoE sees it."""

    dequantized: Dequantized
    shape: tuple[int, ...]
    k_major: bool  # whether it is stored [E, K, N]
    block: int  # elements along K that share a scale; K if all do
    data_type: int  # TensorProto.DataType of what the MoE reads


class MoEFusion(NamedTuple):
    """One MoE that becomes a QMoE node."""

    site: Site
    fc1: _Weight
    operands: Operands  # "fc1_experts_weights" and so on, as the operator's specification calls them
    bits: int  # of an element of the fused node
    block_size: int  # of the fused node; 0: each row has one scale
    accuracy_level: int

    @property
    def operator(self) -> str:
        """The type of the fused node."""
        return "QMoE"

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Where MoE takes a softmax of all probabilities, QMoE has to be given it; by itself it takes one of the largest."""
        scope, index = self.site.replaced[0]
        node = scope.nodes[index]
        given = [*node.input, *[""] * _MAX_INPUTS]
        is_of_largest = int_attribute(node, "normalize_routing_weights") != 0
        weights = "" if is_of_largest else emitter.node("Softmax", [given[1]], axis=-1)
        layers = [
            [operands[f"{name}_experts_weights"], operands[f"{name}_scales"], given[at]] for name, at in _BIASES.items()
        ]
        zero_points = [operands.get(f"{name}_zero_points", "") for name in _BIASES]
        inputs = [*given[:2], *layers[0], *layers[1], "", "", "", *zero_points, "", weights]
        while not inputs[-1]:
            inputs.pop()
        passed = {attr.name: attr for attr in node.attribute if attr.name in _PASSED_ON}
        own = {"expert_weight_bits": self.bits, "weights_prepacked": 0, "accuracy_level": self.accuracy_level}
        emitter.fused(self.operator, inputs, **passed, **own, **({"block_size": self.block_size} if self.block_size else {}))

    def entry(self) -> FusedWeight:
        """What the report says of it."""
        experts, n, k = self.fc1.shape
        scope, index = self.site.replaced[0]
        return report_entry(
            self,
            k=k,
            n=experts * n,
            bits=self.bits,
            stored_bits=self.fc1.dequantized.bits,
            block_size=self.block_size or k,
            layout="K-major" if self.fc1.k_major else "N-major",
            has_bias=any(any(scope.nodes[index].input[at : at + 1]) for at in _BIASES.values()),
        )


def fuse(site: Site, dequantized: Dequantized, view: View, settings: FusionSettings, locate: Locate) -> MoEFusion:
    """Fuse the MoE at a site (`kind.Fuse`), with all of its weights."""
    del dequantized, view  # they are read with the other weights
    scope, index = site.replaced[0]
    node = scope.nodes[index]
    names = {name: node.input[at - 1] for name, at in _BIASES.items() if at <= len(node.input)}
    if len(names) < len(_BIASES) or not node.output or list(node.input).count(site.weight) > 1:
        raise NotFusable(Reason.CONSUMER)
    if site.weight not in names.values():
        raise NotFusable(Reason.CONSUMER)
    gate = _check_kernels(node, scope.opset)
    if not has(SPARSE_EXPERTS):
        raise NotFusable(Reason.EXPERTS)
    constants, is_centred = Constants(locate), Centred()
    weights = {name: _read_weight(scope, value, constants, is_centred) for name, value in names.items()}
    (experts, n, k), (same, hidden, inner) = weights["fc1"].shape, weights["fc2"].shape
    if (experts, n, k) != (same, gate * inner, hidden) or not 1 <= int_attribute(node, "k", 1) <= experts:
        raise NotFusable(Reason.INVALID)
    bits, block_size = _form_of([*weights.values()], settings)
    return MoEFusion(
        site=site._replace(joined=tuple(name for name in names.values() if name != site.weight)),
        fc1=weights["fc1"],
        operands={
            f"{name}_{operand}": made
            for name, weight in weights.items()
            for operand, made in _operands_of(weight, bits, block_size).items()
        },
        bits=bits,
        block_size=block_size,
        accuracy_level=settings.accuracy_level,
    )


def _check_kernels(node: NodeProto, opset: int) -> int:
    """How many values go into an activation; raises NotFusable for what the two kernels do not take, or do not do alike."""
    given = attributes(node)
    if len(node.input) > _MAX_INPUTS and any(node.input[_MAX_INPUTS:]):
        raise NotFusable(Reason.EXPERTS)
    activation = _text_of(given.get("activation_type"))
    order = int_attribute(node, "swiglu_fusion")
    is_gated = activation == _GATED and order == _INTERLEAVED
    if not is_gated and (activation not in _ACTIVATIONS or order):
        raise NotFusable(Reason.EXPERTS)
    if int_attribute(node, "use_sparse_mixer") or int_attribute(node, "swiglu_limit_after_activation"):
        raise NotFusable(Reason.EXPERTS)
    if not int_attribute(node, "normalize_routing_weights") and opset < _SOFTMAX_OF_AN_AXIS_SINCE:
        raise NotFusable(Reason.EXPERTS)
    return 2 if is_gated else 1


def _text_of(attr: AttributeProto | None) -> str:
    return "relu" if attr is None else attr.s.decode("utf-8", "replace")


def _read_weight(scope: Scope, name: str, constants: Constants, is_centred: Centred) -> _Weight:
    """A weight under the name by which the MoE reads it; raises NotFusable if it is not quantized."""
    behind: list[tuple[Scope, NodeProto]] = []
    while not behind or not is_dequantize(behind[-1][1]):
        found = scope.producer(name)
        if found is None or len(behind) == _MAX_VIEWS or role_of(found[2]) not in ("view", "dequantize"):
            raise NotFusable(Reason.EXPERTS)
        scope, index, node = found
        if not is_as_specified(scope, index, scope.opset):
            raise NotFusable(Reason.OPSET)
        behind.append((scope, node))
        name = node.input[0]
    where, node = behind.pop()
    dequantized = read_dequantize(where, node, constants, is_centred)
    view: View | None = dequantized.view
    while behind and view is not None:
        view = follow(view, *behind.pop(), constants.locate)
    if view is None or len(view.axes) != _STACK or len(dequantized.weight.shape) != _STACK:
        raise NotFusable(Reason.EXPERTS)
    k_major = view.axes == ((0,), (2,), (1,))
    axis = dequantized.axis
    along_k = axis == (1 if k_major else 2) and dequantized.block > 0
    if not (k_major or view.axes == ((0,), (1,), (2,))) or not (along_k or axis is None):
        raise NotFusable(Reason.EXPERTS)
    k = view.shape[-1]
    return _Weight(dequantized, view.shape, k_major, min(dequantized.block or k, k), view.data_type)


def _form_of(weights: list[_Weight], settings: FusionSettings) -> tuple[int, int]:
    """Bits and block size of the fused node; raises NotFusable where it takes no form that computes the same.

    The kernels for blocks of 2 and 8 bits round activations at every accuracy level. 2 bits become 4 where that must not be,
    and rows of 8 bits that have one scale are dequantized.
    """
    bits = max(weight.dequantized.bits for weight in weights)
    types = {weight.data_type for weight in weights}
    scales = {weight.dequantized.scales.data_type for weight in weights}
    rounds = settings.accuracy_level >= ROUNDS
    if len({weight.dequantized.bits for weight in weights}) > 1 or types not in ({FLOAT}, {FLOAT16}):
        raise NotFusable(Reason.EXPERTS)
    if types == {FLOAT16} and scales != {FLOAT16}:
        raise NotFusable(Reason.EXPERTS)  # these are too fine for it
    if all(weight.block == weight.shape[-1] for weight in weights) and bits == 8 and not rounds:
        return bits, 0
    if bits == 8 and not rounds:
        raise NotFusable(Reason.EXPERTS)
    ends = math.gcd(*(weight.block for weight in weights), *(weight.shape[-1] for weight in weights))
    block_size = min(ends & -ends, _MAX_BLOCK_SIZE)
    if block_size < _MIN_BLOCK_SIZE:
        raise NotFusable(Reason.EXPERTS)
    return (4 if bits == 2 and not rounds else bits), block_size


def _operands_of(weight: _Weight, bits: int, block_size: int) -> Operands:
    """The operands that take the place of a weight: experts_weights, scales, and zero_points where they are needed."""
    stored, (experts, n, k) = weight.dequantized, weight.shape
    stored_bits, signed = stored.bits, ELEMENTS[stored.weight.data_type].weight == "signed"
    block = block_size or k
    blocks, lines, is_wider = k // block, experts * n, bits != stored_bits
    # Where there are no zero points, the middle of the range is the 0: it becomes the middle of the new one.
    moved = (1 << bits - 1) - (1 << stored_bits - 1) if stored.centred else 0
    order, stack = (Order.TRANSPOSED, experts) if weight.k_major else (Order.ROWS, 1)
    per_block, stack_of_blocks, repeat = order, stack, weight.block // block
    if stored.axis is None:
        per_block, stack_of_blocks, repeat = Order.SPREAD, 1, 1
    tensors = [tensor for tensor in (stored.weight, stored.zero_points) if tensor is not None]
    if stack > 1 and not all(tensor.has_parts for tensor in tensors):
        raise NotFusable(Reason.EXPERTS)
    scale_type, own_type = weight.data_type, stored.scales.data_type
    rank = 3 if block_size else 2
    operands = {
        "experts_weights": Operand(
            UINT8, (experts, n, k * bits // 8), lines=lines, length=k, line_bytes=k * bits // 8, source=stored.weight,
            order=order, bits=stored_bits, flip=signed, stack=stack, widening=moved if is_wider else None,
        ),
        "scales": Operand(
            scale_type, (experts, n, blocks)[:rank], lines=lines, length=blocks,
            line_bytes=blocks * bits_of(scale_type) // 8, source=stored.scales, order=per_block, bits=bits_of(own_type),
            repeat=repeat, stack=stack_of_blocks,
            conversion=None if own_type == scale_type else Conversion(own_type, scale_type),
        ),
    }  # fmt: skip
    line_bytes = -(-blocks * bits // 8)
    shape = (experts, n, line_bytes)[:rank]
    if stored.zero_points is not None and not stored.centred:
        operands["zero_points"] = Operand(
            UINT8, shape, lines=lines, length=blocks, line_bytes=line_bytes, source=stored.zero_points, order=per_block,
            bits=stored_bits, flip=signed, repeat=repeat, stack=stack_of_blocks, widening=0 if is_wider else None,
        )  # fmt: skip
    elif not stored.centred:
        operands["zero_points"] = zeros(UINT8, lines * line_bytes)._replace(shape=shape)
    return operands
