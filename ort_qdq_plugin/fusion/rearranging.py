"""What nodes make of constants that they take apart, put together or order anew: expressions of the same elements.

Format facts: these operators of the ONNX specification.
"""

from __future__ import annotations

import math

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.boxes import whole
from ort_qdq_plugin.folding.building import concatenated, reshaped, sliced, taken, transposed
from ort_qdq_plugin.folding.expression import Elementwise, Expression, Stored
from ort_qdq_plugin.model.elements import FLOAT, INT32, INT64
from ort_qdq_plugin.model.messages import NodeProto, TensorProto, attribute, int_attribute
from ort_qdq_plugin.model.shapes import reshaped_by
from ort_qdq_plugin.model.sources import ExternalFiles, MemorySource
from ort_qdq_plugin.model.tensors import MAX_RANK, stored_tensor
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Given", "concat", "constant_of_shape", "expand", "gather", "reshape", "slice_", "split", "tile", "transpose"]

_MOST_NUMBERS = 1 << 16  # indices, at most


class Given(NamedTuple):
    """A node whose inputs are all constant."""

    node: NodeProto
    inputs: tuple[Expression | None, ...]  # None where an input is left out
    opset: int  # of the model

    @property
    def present(self) -> list[Expression]:
        """The inputs that are there."""
        return [given for given in self.inputs if given is not None]

    @property
    def first(self) -> Expression:
        """The first input; raises ModelError if it is left out."""
        if not self.inputs or self.inputs[0] is None:
            raise ModelError(f"{self.node.op_type} without its first input")
        return self.inputs[0]

    def numbers(self, at: int) -> list[int] | None:
        """The whole numbers that input number `at` holds; None if it is left out."""
        source = self.inputs[at] if at < len(self.inputs) else None
        if source is None:
            return None
        if source.data_type not in (INT32, INT64) or math.prod(source.shape) > _MOST_NUMBERS:
            raise ModelError(f"{self.node.op_type}: numbers of type {source.data_type}, shape {source.shape}")
        return [int(number) for number in source.values(whole(source.shape)).reshape(-1)]

    def vector(self, at: int) -> list[int]:
        """The whole numbers of a vector; raises ModelError if there is none."""
        numbers = self.numbers(at)
        if numbers is None or len(self.inputs[at].shape) != 1 or len(numbers) > MAX_RANK:  # type: ignore[union-attr]
            raise ModelError(f"{self.node.op_type}: no numbers")
        return numbers

    def axis(self, default: int = 0, rank: int | None = None) -> int:
        """The attribute ``axis``, counted from the front."""
        axis, rank = int_attribute(self.node, "axis", default), len(self.first.shape) if rank is None else rank
        if not -rank <= axis < rank:
            raise ModelError(f"{self.node.op_type}: axis {axis} of {rank} dimensions")
        return axis % rank


def transpose(given: Given, _: int) -> Expression:
    source, perm = given.first, attribute(given.node, "perm")
    order = tuple(perm.ints) if perm is not None else tuple(reversed(range(len(source.shape))))
    if sorted(order) != list(range(len(source.shape))):
        raise ModelError("perm is no permutation")
    return transposed(source, order)


def reshape(given: Given, _: int) -> Expression:
    source, kind = given.first, given.node.op_type
    if kind == "Flatten":
        rank, axis = len(source.shape), int_attribute(given.node, "axis", 1)
        if not -rank <= axis <= rank:
            raise ModelError(f"Flatten at axis {axis} of {rank} dimensions")
        axis += rank if axis < 0 else 0
        return reshaped(source, (math.prod(source.shape[:axis]), math.prod(source.shape[axis:])))
    if kind == "Squeeze" and len(given.present) == 1 and attribute(given.node, "axes") is None:
        return reshaped(source, tuple(size for size in source.shape if size != 1))
    found = reshaped_by(given.node, source.shape, lambda _: given.vector(1))
    sizes = [size for size in found or () if size is not None]
    if found is None or len(sizes) < len(found):
        raise ModelError(f"{kind} to a shape that is not known")
    return reshaped(source, tuple(sizes))


def concat(given: Given, _: int) -> Expression:
    parts, axis = given.present, given.axis()
    around = {(part.data_type, part.shape[:axis], part.shape[axis + 1 :], len(part.shape)) for part in parts}
    if len(around) != 1 or len(parts) < len(given.inputs) or attribute(given.node, "axis") is None:
        raise ModelError("Concat of what does not fit together")
    return concatenated(parts, axis)


def slice_(given: Given, _: int) -> Expression:
    source, rank = given.first, len(given.first.shape)
    if len(given.inputs) > 1:
        starts, ends = given.vector(1), given.vector(2)
        axes = given.vector(3) if given.numbers(3) is not None else list(range(len(starts)))
        steps = given.vector(4) if given.numbers(4) is not None else [1] * len(starts)
    else:
        found = [attribute(given.node, name) for name in ("starts", "ends", "axes")]
        starts, ends = ([] if one is None else list(one.ints) for one in found[:2])
        axes = list(range(len(starts))) if found[2] is None else list(found[2].ints)
        steps = [1] * len(starts)
    counted = [axis % rank for axis in axes if -rank <= axis < rank]
    lengths = {len(starts), len(ends), len(axes), len(steps), len(set(counted))}
    if len(lengths) != 1 or 0 in steps:
        raise ModelError("Slice with numbers that do not fit together")
    for axis, start, end, step in zip(counted, starts, ends, steps, strict=True):
        indices = range(source.shape[axis])[slice(start, end, step)]
        if not indices:
            raise ModelError("Slice that leaves nothing")
        source = sliced(source, axis, indices.start, indices.step, len(indices))
    return source


def split(given: Given, output: int) -> Expression:
    source, axis, count = given.first, given.axis(), len(given.node.output)
    size, attributed = source.shape[axis], attribute(given.node, "split")
    if attributed is not None:
        sizes = list(attributed.ints)
    elif given.numbers(1) is not None:
        sizes = given.vector(1)
    else:
        stated = int_attribute(given.node, "num_outputs", count)
        step = -(-size // count)
        sizes = [step] * (count - 1) + [size - step * (count - 1)]
        if stated != count or (attribute(given.node, "num_outputs") is None and size % count):
            raise ModelError("Split into parts that are not known")
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 0:
        raise ModelError("Split into parts that do not fit")
    return sliced(source, axis, sum(sizes[:output]), 1, sizes[output])


def gather(given: Given, _: int) -> Expression:
    source, axis, numbers = given.first, given.axis(), given.numbers(1)
    size = source.shape[axis]
    if numbers is None or not all(-size <= number < size for number in numbers):
        raise ModelError("Gather of indices that are not there")
    shape = given.inputs[1].shape  # type: ignore[union-attr]
    rows = taken(source, axis, [number % size for number in numbers])
    return reshaped(rows, (*source.shape[:axis], *shape, *source.shape[axis + 1 :]))


def expand(given: Given, _: int) -> Expression:
    return _broadcast(given.first, given.vector(1))


def _broadcast(source: Expression, sizes: list[int]) -> Expression:
    """The source, broadcast together with a shape."""
    try:
        shape = np.broadcast_shapes(source.shape, tuple(sizes))
    except ValueError:
        raise ModelError(f"shape {sizes} for {source.shape}") from None
    return Elementwise("Expand", lambda values: values, (source,), source.data_type, shape)


def constant_of_shape(given: Given, _: int) -> Expression:
    value = attribute(given.node, "value")
    tensor = TensorProto(data_type=FLOAT, dims=[1], float_data=[0]) if value is None else value.t
    stored = stored_tensor(tensor, ExternalFiles.none(), MemorySource(b""), "")
    if stored.elements != 1:
        raise ModelError("ConstantOfShape with another number of values than one")
    return _broadcast(reshaped(Stored(stored), ()), given.vector(0))


def tile(given: Given, _: int) -> Expression:
    source, repeats = given.first, given.vector(1)
    fits = len(repeats) == len(source.shape)
    if not fits or not all(1 <= count * size <= _MOST_NUMBERS for count, size in zip(repeats, source.shape, strict=True)):
        raise ModelError(f"Tile {repeats} times")
    for axis, count in enumerate(repeats):
        source = taken(source, axis, list(range(source.shape[axis])) * count)
    return source
