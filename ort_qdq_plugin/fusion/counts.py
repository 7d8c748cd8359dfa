"""Bytes of a model's weights. Tied embeddings are one weight, whether one node dequantizes it or one for each reader."""

from __future__ import annotations

from collections.abc import Iterable

from ort_qdq_plugin.fusion.constants import bytes_stored, stored_in
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.model.elements import FLOAT, bits_of
from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = ["MAX_BYTES", "Counts"]

MAX_BYTES = 2**63 - 1
"""Reported of a size that no tensor can have."""


class Counts:
    """Counts each byte, and each weight, once."""

    def __init__(self) -> None:
        self._stored: list[StoredTensor] = []
        self._float: dict[tuple[object, ...], int] = {}
        self._missing = 0

    def add(self, dequantized: Dequantized, *, is_fused: bool) -> None:
        """Count a weight."""
        self._stored += [stored for tensor in dequantized.tensors for stored in stored_in(tensor)]
        if is_fused:
            self._float[dequantized.weight.storage] = dequantized.weight.elements * bits_of(FLOAT) // 8

    def add_unread(self, stored: Iterable[StoredTensor], missing: int) -> None:
        """Count one whose operands do not fit together: those that are there, and the bytes of those that are not."""
        self._stored += stored
        self._missing += missing

    @property
    def stored_bytes(self) -> int:
        """What the model stores of all weights, their scales and their zero points."""
        return min(bytes_stored(self._stored) + self._missing, MAX_BYTES)

    @property
    def float_bytes(self) -> int:
        """What fused weights take in float."""
        return sum(self._float.values())
