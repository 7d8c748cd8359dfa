"""Where each operand goes: into a slot of a packed buffer, or nowhere if it is used where the model stores it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ort_qdq_plugin.model.operands import Operand

__all__ = ["Layout", "Move", "Slot", "plan_layout"]

_PAGE_BYTES = 4096
_CACHE_LINE_BYTES = 64
# Operands from this size on start on a page of their own, so that their pages can be dropped apart from others.
_PAGE_ALIGNED_BYTES = 1 << 16


class Slot(NamedTuple):
    """A place in a packed buffer: from byte `offset` on, in the buffer number `segment`."""

    segment: int
    offset: int


class Move(NamedTuple):
    """An operand, and the slot that it is packed into."""

    operand: Operand
    slot: Slot


class Layout(NamedTuple):
    """A plan of the packed buffers.

    Attributes:
        slots: Of each operand that is packed, by its key. The others are used where they are stored.
        moves: What fills the buffers.
        sizes: Of the buffers, in bytes.
    """

    slots: Mapping[tuple[object, ...], Slot]
    moves: tuple[Move, ...]
    sizes: tuple[int, ...]


def plan_layout(groups: Iterable[Iterable[Operand]], segments: int = 1) -> Layout:
    """Give every operand that has to be packed a slot.

    Args:
        groups: The operands of each fused node. What is the same bytes, made in the same way, gets one slot.
        segments: The most buffers to use, of similar size.
    """
    planner = _Planner(segments)
    for group in groups:
        planner.add(group)
    return planner.finish()


class _Planner:
    def __init__(self, segments: int) -> None:
        self._moves: dict[tuple[object, ...], Move] = {}
        self._zeros: dict[tuple[object, ...], Operand] = {}
        self._sizes = [0] * segments

    def add(self, group: Iterable[Operand]) -> None:
        # Into the emptiest buffer. No later one is used before an earlier one, so that none in the middle stays empty.
        segment = min(range(len(self._sizes)), key=self._sizes.__getitem__)
        for operand in group:
            if operand.in_place is not None:
                continue
            key = operand.key
            if operand.source is None:
                self._zeros[key] = operand
            elif key not in self._moves:
                move = Move(operand.as_bytes() if operand.is_copy else operand, self._next(segment, operand.nbytes))
                self._moves[key] = move

    def finish(self) -> Layout:
        # All zeros share one run behind everything else.
        zeros = self._next(0, max((operand.nbytes for operand in self._zeros.values()), default=0))
        slots = {key: move.slot for key, move in self._moves.items()} | dict.fromkeys(self._zeros, zeros)
        return Layout(slots, tuple(self._moves.values()), tuple(size for size in self._sizes if size))

    def _next(self, segment: int, nbytes: int) -> Slot:
        size = self._sizes[segment]
        alignment = _PAGE_BYTES if nbytes >= _PAGE_ALIGNED_BYTES else _CACHE_LINE_BYTES
        offset = -(-size // alignment) * alignment
        if nbytes:
            self._sizes[segment] = offset + nbytes
        return Slot(segment, offset)
