"""Constant expressions as tensors: their bytes are computed when they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.boxes import boxes_of
from ort_qdq_plugin.folding.elements import pack_elements
from ort_qdq_plugin.folding.expression import Expression, Stored, Transposed, key_of, leaves
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.tensors import StoredTensor, tensor_bytes

__all__ = ["as_expression", "as_tensor", "stored_in"]

# Elements that are computed at once: what is made on the way stays in cache. A multiple of eight, so that pieces end on a
# byte's border even if elements do not.
_PIECE = 1 << 17
# The same where axes change their order: boxes of the source are then parts of many rows, and longer ones are read faster.
_TRANSPOSED_PIECE = 1 << 20


def as_tensor(expression: Expression, name: str) -> StoredTensor:
    """The tensor that an expression is. `name` is what errors call it.

    Raises:
        ModelError: The expression has no elements, or none of a fixed size.
    """
    if isinstance(expression, Stored):
        return expression.tensor
    nbytes = tensor_bytes(expression.data_type, expression.shape)
    if not nbytes:
        raise ModelError(f"{name}: computed of no elements")
    source = _ComputedSource(expression, name, nbytes)
    return StoredTensor(name, expression.data_type, tuple(expression.shape), source, offset=0, nbytes=nbytes)


def as_expression(tensor: StoredTensor) -> Expression:
    """The expression that a tensor is: its own, if it is computed."""
    source = tensor.source
    if not isinstance(source, _ComputedSource) or tensor.nbytes != source.size:
        return Stored(tensor)
    expression = source.expression
    is_same = (tensor.data_type, tensor.shape) == (expression.data_type, expression.shape)
    return expression if is_same else Stored(tensor)


def stored_in(tensor: StoredTensor) -> Iterator[StoredTensor]:
    """The stored tensors that a tensor is computed from, once for each use; itself if it is stored."""
    for leaf in leaves(as_expression(tensor)):
        if isinstance(leaf.source, _ComputedSource):
            # A part of what is computed.
            yield from stored_in(as_tensor(leaf.source.expression, leaf.name))
        else:
            yield leaf


def _is_transposed(expression: Expression) -> bool:
    return isinstance(expression, Transposed) or any(map(_is_transposed, expression.operands))


class _ComputedSource:
    """The bytes of an expression (`model.sources.ByteSource`). They are in no file, and nobody can borrow them."""

    is_stored = False

    def __init__(self, expression: Expression, name: str, nbytes: int) -> None:
        self.expression = expression
        self.name = name
        self.size = nbytes
        self.identity: object = key_of(expression)
        self._piece = _TRANSPOSED_PIECE if _is_transposed(expression) else _PIECE

    def read_into(self, offset: int, target: memoryview) -> None:
        out, bits = np.frombuffer(target, np.uint8), ELEMENTS[self.expression.data_type].bits
        first = offset * 8 // bits
        last = min(-(-(offset + out.size) * 8 // bits), math.prod(self.expression.shape))
        at = first * bits // 8 - offset  # of the first byte that is computed, in what is asked for
        for start in range(first, last, self._piece):
            data = self._computed(start, min(start + self._piece, last))
            wanted = data[max(-at, 0) : out.size - at]
            out[max(at, 0) : max(at, 0) + wanted.size] = wanted
            at += data.size

    def _computed(self, first: int, last: int) -> np.ndarray:
        """The bytes of elements first..last."""
        boxes = boxes_of(self.expression.shape, first, last, self._piece)
        parts = [self.expression.values(box).reshape(-1) for box in boxes]
        values = np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
        bits = ELEMENTS[self.expression.data_type].bits
        data = values.view(np.uint8)
        return pack_elements(data, bits) if bits < 8 else data

    def check_unchanged(self) -> None:
        return None  # its leaves are in files of the model, which are checked

    def buffer(self) -> bytes:
        raise ModelError(f"{self.name}: computed, and not stored anywhere")

    def close(self) -> None:
        return None
