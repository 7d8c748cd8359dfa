"""Where each operand goes: into a slot of a packed buffer, or nowhere if it is used where the model stores it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from ort_qdq_plugin.model.operands import Operand

__all__ = ["Layout", "Move", "Slot", "aligned", "plan_layout"]

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
    """A plan of the packed buffers."""

    # Of each operand that is packed, by its key. The others are used where they are stored.
    slots: Mapping[tuple[object, ...], Slot]
    moves: tuple[Move, ...]  # what fills the buffers
    sizes: tuple[int, ...]  # of the buffers, in bytes


def aligned(offset: int, nbytes: int) -> int:
    """Where so many bytes start that are put into a packed buffer behind what ends at byte `offset`."""
    alignment = _PAGE_BYTES if nbytes >= _PAGE_ALIGNED_BYTES else _CACHE_LINE_BYTES
    return -(-offset // alignment) * alignment


def _is_in_place(operand: Operand) -> bool:
    return operand.in_place is not None


def plan_layout(
    groups: Iterable[Iterable[Operand]], segments: int = 1, stays: Callable[[Operand], bool] = _is_in_place
) -> Layout:
    """Give every operand that has to be packed a slot, in at most `segments` buffers of similar size.

    `groups` are the operands of each fused node. What is the same bytes, made in the same way, gets one slot. An operand
    that `stays` is used where it is stored.
    """
    moves: dict[tuple[object, ...], Move] = {}
    zeros: dict[tuple[object, ...], int] = {}
    used = [0] * segments

    def slot_in(segment: int, nbytes: int) -> Slot:
        offset = aligned(used[segment], nbytes)
        if nbytes:
            used[segment] = offset + nbytes
        return Slot(segment, offset)

    for group in groups:
        # Into the emptiest buffer. No later one is used before an earlier one, so that none in the middle stays empty.
        emptiest = min(range(segments), key=used.__getitem__)
        for operand in group:
            if stays(operand):
                continue
            if operand.source is None:
                zeros[operand.key] = operand.nbytes
            elif operand.key not in moves:
                moved = operand.as_bytes() if operand.is_copy else operand
                moves[operand.key] = Move(moved, slot_in(emptiest, operand.nbytes))
    # All zeros share one run after everything else.
    run = slot_in(0, max(zeros.values(), default=0))
    slots = {key: move.slot for key, move in moves.items()} | dict.fromkeys(zeros, run)
    return Layout(slots, tuple(moves.values()), tuple(size for size in used if size))
