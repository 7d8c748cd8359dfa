"""Constant expressions: tensors that are computed from stored ones, a box of elements at a time.

An expression has a shape and an element type, as a tensor has, but no bytes. It is asked for boxes of itself, and asks its
operands for what these need. So a float weight of many gigabytes behind QuantizeLinear is never in memory as a whole.

Elements are in NumPy's type of the element type, those of less than a byte in int8 or uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Protocol

import numpy as np

from ort_qdq_plugin.errors import NotComputedError
from ort_qdq_plugin.folding.boxes import Box, boxes_of, covering_box, covering_run, groups_of_axes, replaced, sizes_of, whole
from ort_qdq_plugin.folding.elements import elements_of, numpy_type
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "Concatenated",
    "Elementwise",
    "Expression",
    "Reshaped",
    "Sliced",
    "Spread",
    "Stored",
    "Taken",
    "Transposed",
    "key_of",
    "leaves",
]

# What is read or computed beyond a box, in elements, where that saves many small steps or cannot be helped. Beyond that it
# is not computed.
_MOST_AROUND = 1 << 22


class Expression(Protocol):
    """A constant tensor whose elements can be computed."""

    @property
    def data_type(self) -> int:
        """The TensorProto.DataType of the elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @property
    def operands(self) -> tuple[Expression, ...]:
        """What it is computed from."""

    def values(self, box: Box) -> np.ndarray:
        """The elements of a box, in the box's shape.

        Raises:
            ModelError: They are no numbers that ONNX Runtime would compute in the same way everywhere.
            SourceChangedError, SourceUnreadableError, OSError: They cannot be read.
        """


def key_of(expression: Expression) -> tuple[object, ...]:
    """Equal for expressions that do the same with the same stored bytes."""
    if isinstance(expression, Stored):
        return (expression.data_type, expression.shape, expression.tensor.storage)
    # What a function is, its name says; the types of its operands are in their keys.
    fields = zip(expression._fields, expression, strict=True)  # type: ignore[attr-defined,call-overload]
    mine = [value for field, value in fields if field not in ("function", "operands", "source")]
    return (type(expression).__name__, *mine, *map(key_of, expression.operands))


def leaves(expression: Expression) -> Iterator[StoredTensor]:
    """The stored tensors that an expression is computed from, once for each use."""
    if isinstance(expression, Stored):
        yield expression.tensor
    for operand in expression.operands:
        yield from leaves(operand)


class Stored(NamedTuple):
    """A tensor as it is stored."""

    tensor: StoredTensor

    @property
    def data_type(self) -> int:
        return self.tensor.data_type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def operands(self) -> tuple[Expression, ...]:
        return ()

    def values(self, box: Box) -> np.ndarray:
        sizes, shape = sizes_of(box), self.shape
        # Axes from `run` on are whole: the elements of one index of those before it follow each other.
        run = len(shape)
        while run and sizes[run - 1] == shape[run - 1]:
            run -= 1
        run = max(run - 1, 0)
        inner, count = math.prod(shape[run + 1 :]), math.prod(sizes[run:])
        if run and 2 * count >= math.prod(shape[run:]) and math.prod(sizes[:run]) * math.prod(shape[run:]) <= _MOST_AROUND:
            # Most of each row is wanted: all of them are read at once.
            rows = self.values((*box[:run], *whole(shape[run:])))
            wanted: np.ndarray = rows[(slice(None),) * run + tuple(slice(*bounds) for bounds in box[run:])]
            return wanted
        strides = [math.prod(shape[axis + 1 :]) for axis in range(run)]
        start = box[run][0] * inner if shape else 0
        result = np.empty((math.prod(sizes[:run]), count), numpy_type(self.data_type))
        for at, indices in enumerate(product(*(range(*bounds) for bounds in box[:run]))):
            first = start + sum(index * stride for index, stride in zip(indices, strides, strict=True))
            result[at] = elements_of(self.tensor, first, count)
        return result.reshape(sizes)


class Elementwise(NamedTuple):
    """A function of the elements that lie in the same place of all operands, broadcast against each other."""

    name: str  # what `function` is: the same name does the same
    function: Callable[..., np.ndarray]
    operands: tuple[Expression, ...]
    data_type: int
    shape: tuple[int, ...]

    def values(self, box: Box) -> np.ndarray:
        given = [operand.values(_broadcast_box(box, operand.shape)) for operand in self.operands]
        with np.errstate(all="ignore"):
            result: np.ndarray = np.broadcast_to(self.function(*given), sizes_of(box))
        return result


class Spread(NamedTuple):
    """Blocks: each element of the source stands `block` times along an axis, the last one as often as it fits."""

    source: Expression
    axis: int
    block: int
    shape: tuple[int, ...]

    @property
    def data_type(self) -> int:
        return self.source.data_type

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.source,)

    def values(self, box: Box) -> np.ndarray:
        first, last = box[self.axis]
        start = first // self.block
        taken = self.source.values(replaced(box, self.axis, (start, -(-last // self.block))))
        spread = np.repeat(taken, self.block, self.axis)
        cut = slice(first - start * self.block, last - start * self.block)
        result: np.ndarray = spread[(slice(None),) * self.axis + (cut,)]
        return result


class Transposed(NamedTuple):
    """Axes in another order: axis i of the result is axis perm[i] of the source."""

    source: Expression
    perm: tuple[int, ...]

    @property
    def data_type(self) -> int:
        return self.source.data_type

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape[axis] for axis in self.perm)

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.source,)

    def values(self, box: Box) -> np.ndarray:
        return self.source.values(tuple(box[self.perm.index(axis)] for axis in range(len(box)))).transpose(self.perm)


class Reshaped(NamedTuple):
    """The same elements in the same order, in another shape."""

    source: Expression
    shape: tuple[int, ...]

    @property
    def data_type(self) -> int:
        return self.source.data_type

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.source,)

    def values(self, box: Box) -> np.ndarray:
        sizes = sizes_of(box)
        first, last = covering_run(box, self.shape)
        if last - first == math.prod(sizes):
            parts = [self.source.values(part) for part in boxes_of(self.source.shape, first, last, last - first)]
            if len(parts) == 1:
                return parts[0].reshape(sizes)
            return np.concatenate([part.reshape(-1) for part in parts]).reshape(sizes)
        # Of each group of axes that hold the same elements on both sides: what is asked for lies in a run of elements, that
        # in a box of the source, and this is a run again.
        taken: list[tuple[int, int]] = []
        lengths: list[int] = []
        runs: list[slice] = []
        around: list[tuple[int, int]] = []
        for mine, theirs in groups_of_axes(self.shape, self.source.shape):
            around += covering_box(covering_run(box[mine], self.shape[mine]), self.shape[mine])
            first, last = covering_run(around[mine], self.shape[mine])
            taken += covering_box((first, last), self.source.shape[theirs])
            start, end = covering_run(taken[theirs], self.source.shape[theirs])
            lengths.append(end - start)
            runs.append(slice(first - start, last - start))
        if math.prod(lengths) > max(2 * math.prod(sizes), _MOST_AROUND):
            raise NotComputedError("a Reshape that tears apart what is read together")
        values = self.source.values(tuple(taken)).reshape(lengths)[tuple(runs)].reshape(sizes_of(around))
        wanted = [slice(first - start, last - start) for (first, last), (start, _) in zip(box, around, strict=True)]
        result: np.ndarray = values[tuple(wanted)]
        return result


class Sliced(NamedTuple):
    """Every `step`-th element of the source along an axis, from `start` on."""

    source: Expression
    axis: int
    start: int
    step: int
    length: int  # of the result along the axis

    @property
    def data_type(self) -> int:
        return self.source.data_type

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.source.shape
        return (*shape[: self.axis], self.length, *shape[self.axis + 1 :])

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.source,)

    def values(self, box: Box) -> np.ndarray:
        first, last = (self.start + at * self.step for at in (box[self.axis][0], box[self.axis][1] - 1))
        low, high = min(first, last), max(first, last)
        taken = self.source.values(replaced(box, self.axis, (low, high + 1)))
        steps = [slice(None)] * self.axis + [slice(None, None, self.step)]
        result: np.ndarray = taken[tuple(steps)]
        return result


class Taken(NamedTuple):
    """Some indices of an axis of the source, in any order and any number of times."""

    source: Expression
    axis: int
    indices: bytes  # int64, none of them negative. Bytes are hashed once

    @property
    def data_type(self) -> int:
        return self.source.data_type

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.source.shape
        return (*shape[: self.axis], len(self.indices) // 8, *shape[self.axis + 1 :])

    @property
    def operands(self) -> tuple[Expression, ...]:
        return (self.source,)

    def values(self, box: Box) -> np.ndarray:
        indices = np.frombuffer(self.indices, np.int64)[slice(*box[self.axis])]
        low, high = int(indices.min()), int(indices.max()) + 1
        if high - low <= 2 * len(indices):
            return np.take(self.source.values(replaced(box, self.axis, (low, high))), indices - low, self.axis)
        parts = [self.source.values(replaced(box, self.axis, (index, index + 1))) for index in indices.tolist()]
        return np.concatenate(parts, self.axis)


class Concatenated(NamedTuple):
    """Expressions one after another along an axis."""

    operands: tuple[Expression, ...]
    axis: int

    @property
    def data_type(self) -> int:
        return self.operands[0].data_type

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.operands[0].shape
        total = sum(operand.shape[self.axis] for operand in self.operands)
        return (*shape[: self.axis], total, *shape[self.axis + 1 :])

    def values(self, box: Box) -> np.ndarray:
        (first, last), start = box[self.axis], 0
        parts: list[np.ndarray] = []
        for operand in self.operands:
            end = start + operand.shape[self.axis]
            if max(first, start) < min(last, end):
                inside = (max(first, start) - start, min(last, end) - start)
                parts.append(operand.values(replaced(box, self.axis, inside)))
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis)


def _broadcast_box(box: Box, shape: tuple[int, ...]) -> Box:
    """What a box takes of an operand of this shape."""
    aligned = box[len(box) - len(shape) :]
    return tuple((0, 1) if size == 1 else bounds for size, bounds in zip(shape, aligned, strict=True))
