"""Whether the zero points of a weight are needed at all: what their bytes say."""

from __future__ import annotations

import numpy as np

from ort_qdq_plugin.model.elements import ELEMENTS, top_bits
from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = ["Centred"]

# They are read to see it: the first bytes, then a chunk at a time, up to a limit for a model.
_HEAD_BYTES, _CHUNK_BYTES = 4096, 1 << 20
_MAX_READ_BYTES = 1 << 30


class Centred:
    """Whether zero points are those that MatMulNBits takes by itself, so that it need not be given them.

    For elements of more than 8 bits, which it does not take: whether they are 0. One object serves one model: it remembers
    the answers, and says no once it has read _MAX_READ_BYTES.

    Args:
        needed_bits: Elements of so many bits need the zero points that they have, whatever those are; 0: none do.
    """

    def __init__(self, needed_bits: int = 0) -> None:
        self._needed_bits = needed_bits
        self._known: dict[tuple[object, ...], bool] = {}
        self._left = _MAX_READ_BYTES

    def __call__(self, data_type: int, zero_points: StoredTensor | None) -> bool:
        element = ELEMENTS[data_type]
        around_zero = element.weight != "unsigned"
        if zero_points is None:
            return around_zero
        if element.bits == self._needed_bits:
            return False
        key = (*zero_points.storage, zero_points.elements, data_type)
        if key not in self._known:
            # The middle of the unsigned range is an element of which only the top bit is set.
            self._known[key] = self._repeats(zero_points, element.bits, 0 if around_zero else top_bits(element.bits))
        return self._known[key]

    def _repeats(self, zero_points: StoredTensor, bits: int, byte: int) -> bool:
        """Whether every byte, up to the last element, is `byte`."""
        # If they differ, they mostly do so at the beginning. The last byte may be padded, so it is compared apart.
        step, start, end = _HEAD_BYTES, 0, zero_points.nbytes - 1
        while start < end:
            chunk = np.empty(min(step, end - start), np.uint8)
            self._left -= chunk.size
            if self._left < 0:
                return False
            zero_points.read_range(start, chunk)
            if (chunk != byte).any():
                return False
            step, start = _CHUNK_BYTES, start + chunk.size
        last = np.empty(1, np.uint8)
        zero_points.read_range(end, last)
        used = 0xFF >> (zero_points.nbytes * 8 - zero_points.elements * bits)
        return int(last[0]) & used == byte & used
