"""What integers are behind a node's inputs and its result, once ONNX Runtime has moved QuantizeLinear and DequantizeLinear.

Before it looks for operators on integers, ONNX Runtime gives every reader a DequantizeLinear of its own
(ensure_unique_dq_for_node_unit.cc), moves them and QuantizeLinear through operators that only move elements
(qdq_propagation.cc), drops nodes that change nothing, among them Clip and Relu where QuantizeLinear has the same bounds
(qdq_util.cc), and makes uint8 of int8 where processors multiply that faster (qdq_s8_to_u8.cc).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import is_dequantize
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, FLOAT, INT8, UINT8
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, attribute, int_attribute, is_standard
from ort_qdq_plugin.model.operators import CONTRIB_DOMAIN
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Integers", "Operand", "Result", "is_scalar", "same_settings"]

# What DequantizeLinear and QuantizeLinear are moved through (CanNodePropagate).
_MOVING = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")

# The least and the greatest integer of what activations are quantized to.
_RANGES = {
    UINT8: (0, 255),
    INT8: (-128, 127),
    CODES["uint16"]: (0, 65535),
    CODES["int16"]: (-32768, 32767),
}

_FIRST_OPSET_WITH_OUTPUT_DTYPE = 21  # of QuantizeLinear
_MAX_VALUES = 1 << 20  # of constants that are compared
_MAX_MOVED = 64  # nodes on the way from a DequantizeLinear, or to a QuantizeLinear
_MAX_TWINS = 64  # readers of a value among which two that do the same are looked for


class Operand(NamedTuple):
    """What a node reads from a DequantizeLinear."""

    dequantize: NodeProto
    data_type: int  # TensorProto.DataType of the integers; 0 if that is not known
    scale: TensorProto  # of float
    zero_point: str  # its name; "" if there is none

    @property
    def has_blocks(self) -> bool:
        """Whether there are scales for blocks, be it for a single one."""
        return int_attribute(self.dequantize, "block_size") > 0


class Result(NamedTuple):
    """What a node's result goes to: a QuantizeLinear, or anything else."""

    quantize: NodeProto | None = None
    data_type: int = 0  # TensorProto.DataType of the integers


class Integers:
    """Finds operands and results. `int8_activations`: int8 stays int8."""

    def __init__(self, constants: Constants, int8_activations: bool) -> None:
        self.is_constant = constants.is_constant
        self._locate = constants.locate
        self._int8_activations = int8_activations
        self._readers: dict[tuple[Scope, str], list[NodeProto]] = {}

    def readers(self, scope: Scope, name: str) -> list[NodeProto]:
        """The nodes that read a value, once for each input that does; behind an Identity, those that read that."""
        known = self._readers.get((scope, name))
        if known is None:
            known = self._readers[scope, name] = []
            names = [name]
            for value in names:
                for inner, index in scope.uses(value):
                    node = inner.nodes[index]
                    is_seen_through = inner is scope and _is_identity(node) and not scope.is_output(node.output[0])
                    if is_seen_through and len(names) <= _MAX_MOVED:
                        names += [node.output[0]] if node.output[0] not in names else []
                    else:
                        known.append(node)
        return known

    def operands(self, scope: Scope, names: Iterable[str]) -> tuple[Operand, ...] | None:
        """What a node reads under these names; None unless all of it is dequantized."""
        found = [self.operand(scope, name) for name in names if name]
        operands = tuple(operand for operand in found if operand is not None)
        return operands if operands and len(operands) == len(found) else None

    def operand(self, scope: Scope, name: str) -> Operand | None:
        """What a node of `scope` reads under this name; None if it is not dequantized in that graph."""
        value, behind = name, ""
        movers: list[NodeProto] = []
        for _ in range(_MAX_MOVED):
            found = scope.producer(value)
            if found is None or found[0] is not scope:
                return None
            node = found[2]
            if is_dequantize(node):
                break
            if not _is_identity(node):
                if not _is_moving(node) or scope.is_output(value):
                    return None
                movers.append(node)
                behind = behind or value
            value = node.input[0]
        if not is_dequantize(node) or len(node.input) < 2:
            return None
        scale = scope.constant(node.input[1])
        if scale is None or scale.data_type != FLOAT:
            return None
        operand = Operand(node, _type_of_input(scope, node), scale, _zero_point(node))
        if self.is_constant(scope, node.input[0]):
            return operand if not movers or self._is_turned_once(scope, operand, movers) else None
        if movers:
            # A pair of QuantizeLinear and DequantizeLinear comes behind them, or one DequantizeLinear for each reader.
            return self.moved(operand, len(self.readers(scope, behind))) if is_scalar(scale) else None
        quantize = scope.producer(node.input[0])
        is_pair = quantize is not None and quantize[0] is scope and self._is_pair(scope, quantize[2])
        return operand._replace(data_type=self._retyped(operand.data_type, is_pair))

    def moved(self, operand: Operand, readers: int = 1) -> Operand:
        """The operand of an activation that is moved through an operator whose result so many nodes read."""
        return operand._replace(data_type=self._retyped(operand.data_type, readers == 1 and bool(operand.zero_point)))

    def result(self, scope: Scope, name: str) -> Result | None:
        """What the result `name` goes to; None if that is such that it has to be a float."""
        readers = self.readers(scope, name)
        clip = readers[0] if len(readers) == 1 else None
        if clip is None or clip.op_type not in ("Clip", "Relu") or not is_standard(clip) or not clip.output:
            return self.quantized(scope, name)
        if len(self.readers(scope, clip.output[0])) != 1 or scope.is_output(clip.output[0]):
            return Result()
        result = self.quantized(scope, clip.output[0])
        if result is None or result.quantize is None or scope.is_output(name):
            return None
        return result if self._clips_nothing(scope, clip, result.quantize) else None

    def quantized(self, scope: Scope, name: str, behind: bool = False) -> Result | None:
        """As `result`, where nothing is clipped. `behind`: an operator that moves elements makes it of the node's result."""
        value = name
        for _ in range(_MAX_MOVED):
            readers = self.readers(scope, value)
            if len(readers) != 1 or scope.is_output(value):
                break
            reader, is_moved = readers[0], behind or value != name
            if _is_quantize(reader):
                if is_moved and not is_scalar(scope.constant(reader.input[1])):
                    return Result()
                data_type = _type_of_output(scope, reader)
                return Result(reader, self._retyped(data_type, is_moved or self._is_pair(scope, reader)))
            if not _is_moving(reader) or not reader.output:
                break
            value = reader.output[0]
        return None if any(map(_is_quantize, self.readers(scope, name))) else Result()

    def values(self, tensor: TensorProto | None) -> np.ndarray | None:
        """The elements of a small constant; None for anything else."""
        name = "" if tensor is None or tensor.data_type not in ELEMENTS else ELEMENTS[tensor.data_type].numpy
        if tensor is not None and tensor.data_type == CODES["int32"] and 0 < len(tensor.int32_data) <= _MAX_VALUES:
            return np.asarray(tensor.int32_data, np.int32)  # `locate` finds no bytes of these
        if tensor is not None and name:
            with suppress(ModelError, OSError):
                stored = self._locate(tensor)
                return stored.read().view(name) if stored.elements <= _MAX_VALUES else None
        return None

    def is_same_scalar(self, scope: Scope, one: str, other: str) -> bool:
        """Whether two names stand for equal constants of one element, or for nothing."""
        if one == other:
            return not one or is_scalar(scope.constant(one))
        first, second = (self.values(scope.constant(name)) for name in (one, other))
        if first is None or second is None or first.size != 1 or second.size != 1:
            return False
        return first.dtype == second.dtype and bool(first[0] == second[0])

    def _is_turned_once(self, scope: Scope, operand: Operand, movers: list[NodeProto]) -> bool:
        """Whether a constant, of which nothing else is made, is transposed when the model is loaded."""
        if [mover.op_type for mover in movers] != ["Transpose"] or operand.has_blocks:
            return False
        values = (operand.dequantize.output[0], movers[0].output[0])
        # It goes through a QuantizeLinear, which needs a zero point or `output_dtype` to make int8 again.
        is_typed = operand.zero_point or operand.data_type == UINT8 or scope.opset >= _FIRST_OPSET_WITH_OUTPUT_DTYPE
        is_movable = is_scalar(operand.scale) or attribute(movers[0], "perm") is not None
        return all(len(self.readers(scope, value)) == 1 for value in values) and bool(is_typed) and is_movable

    def _retyped(self, data_type: int, is_pair: bool) -> int:
        """The type of an activation's integers, once int8 has become uint8 where it does."""
        return UINT8 if data_type == INT8 and is_pair and not self._int8_activations else data_type

    def _is_pair(self, scope: Scope, quantize: NodeProto) -> bool:
        """Whether a QuantizeLinear has one DequantizeLinear with one reader. Both become uint8 then."""
        if not _is_quantize(quantize) or len(quantize.input) != 3 or scope.is_output(quantize.output[0]):
            return False
        readers = self.readers(scope, quantize.output[0])
        if len(readers) != 1 or not is_dequantize(readers[0]) or len(readers[0].input) != 3 or not readers[0].output:
            return False
        output = readers[0].output[0]
        # Those that do the same become one, which has all their readers.
        others = self.readers(scope, quantize.input[0])[:_MAX_TWINS]
        twins = [other for other in others if _is_quantize(other) and other is not quantize]
        return (
            len(self.readers(scope, output)) + scope.is_output(output) <= 1
            and self.is_same_scalar(scope, quantize.input[2], readers[0].input[2])
            and not any(same_settings(self, scope, quantize, twin) for twin in twins)
        )

    def _clips_nothing(self, scope: Scope, clip: NodeProto, quantize: NodeProto) -> bool:
        """Whether a Clip or Relu changes nothing that the QuantizeLinear behind it can express."""
        bounds = [0.0 if clip.op_type == "Relu" else -np.inf, np.inf]
        for at, key in enumerate(("min", "max")) if clip.op_type == "Clip" else ():
            if (given := attribute(clip, key)) is not None:
                bounds[at] = given.f
            elif len(clip.input) > at + 1 and clip.input[at + 1]:
                value = self.values(scope.constant(clip.input[at + 1]))
                if value is None or value.size != 1:
                    return False
                bounds[at] = float(value[0])
        scale = self.values(scope.constant(quantize.input[1]))
        zero_point = self.values(scope.constant(_zero_point(quantize))) if _zero_point(quantize) else np.zeros(1)
        ends = _RANGES.get(_type_of_output(scope, quantize))
        if scale is None or zero_point is None or ends is None or scale.size != 1 or zero_point.size != 1:
            return False
        with np.errstate(all="ignore"):
            low, high = (np.float32(end - int(zero_point[0])) * np.float32(scale[0]) for end in ends)
        return bool(bounds[0] <= low and bounds[1] >= high)


def same_settings(integers: Integers, scope: Scope, one: NodeProto, other: NodeProto) -> bool:
    """Whether two nodes quantize or dequantize by one scale and one zero point, and by the same ones."""
    is_one_scale = integers.is_same_scalar(scope, one.input[1], other.input[1])
    return is_one_scale and integers.is_same_scalar(scope, _zero_point(one), _zero_point(other))


def is_scalar(tensor: TensorProto | None) -> bool:
    """Whether a tensor has one element, and no more than one axis."""
    return tensor is not None and (not tensor.dims or list(tensor.dims) == [1])


def _zero_point(node: NodeProto) -> str:
    """The name of the zero point of a node that quantizes or dequantizes; "" if it has none."""
    return node.input[2] if len(node.input) > 2 else ""


def _is_quantize(node: NodeProto) -> bool:
    return (
        node.op_type == "QuantizeLinear"
        and (is_standard(node) or node.domain == CONTRIB_DOMAIN)
        and len(node.input) > 1
        and bool(node.output)
    )


def _is_identity(node: NodeProto) -> bool:
    """Whether a node gives the floats that it is given."""
    is_cast = node.op_type == "Cast" and int_attribute(node, "to") == FLOAT
    return (is_cast or node.op_type == "Identity") and is_standard(node) and bool(node.input and node.output)


def _is_moving(node: NodeProto) -> bool:
    return node.op_type in _MOVING and is_standard(node) and bool(node.input)


def _type_of_output(scope: Scope, quantize: NodeProto) -> int:
    """The TensorProto.DataType that a QuantizeLinear makes."""
    zero_point = scope.constant(_zero_point(quantize)) if _zero_point(quantize) else None
    return zero_point.data_type if zero_point is not None else int_attribute(quantize, "output_dtype") or UINT8


def _type_of_input(scope: Scope, dequantize: NodeProto) -> int:
    """The TensorProto.DataType that a DequantizeLinear takes; 0 if that is not known."""
    for name in (dequantize.input[0], _zero_point(dequantize)):
        tensor = scope.constant(name) if name else None
        if tensor is not None:
            return tensor.data_type
    found = scope.producer(dequantize.input[0])
    if found is not None and _is_quantize(found[2]):
        return _type_of_output(found[0], found[2])
    return scope.stated_type(dequantize.input[0]) or 0
