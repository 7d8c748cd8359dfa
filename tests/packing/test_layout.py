"""Where operands go: every one that is packed has room of its own, and what is the same is placed once."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.model.elements import FLOAT, UINT8
from ort_qdq_plugin.model.operands import Operand, Order, as_stored, zeros
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.packing.layout import Layout, Slot, plan_layout

CACHE_LINE, PAGE, PAGE_ALIGNED = 64, 4096, 1 << 16


def stored(nbytes: int, name: int = 0, data_type: int = UINT8, offset: int = 0) -> StoredTensor:
    """Bytes that are those of this name and size alone."""
    data = name.to_bytes(8, "little") + bytes(nbytes)
    count = nbytes // (4 if data_type == FLOAT else 1)
    return StoredTensor("t", data_type, (count,), MemorySource(data), offset, nbytes)


def packed(nbytes: int, name: int = 0) -> Operand:
    """An operand whose bytes change on the way."""
    return as_stored(stored(nbytes, name), (nbytes,))._replace(flip=True)


def check(layout: Layout, groups: Sequence[Sequence[Operand]], segments: int) -> None:
    """Every operand to be packed has room of its own, aligned, within the buffers."""
    assert len(layout.sizes) <= segments
    assert all(layout.sizes)
    taken: dict[Slot, tuple[tuple[object, ...], int]] = {}
    for operand in (operand for group in groups for operand in group):
        slot = layout.slots.get(operand.key)
        assert (slot is None) == (operand.in_place is not None)
        if slot is None:
            continue
        assert slot.offset % (PAGE if operand.nbytes >= PAGE_ALIGNED else CACHE_LINE) == 0
        assert slot.offset + operand.nbytes <= layout.sizes[slot.segment]
        if operand.source is not None:
            assert taken.setdefault(slot, (operand.key, operand.nbytes)) == (operand.key, operand.nbytes)
    for segment, size in enumerate(layout.sizes):
        ranges = sorted((slot.offset, entry[1]) for slot, entry in taken.items() if slot.segment == segment)
        all_zeros = [layout.slots[o.key] for group in groups for o in group if o.source is None]
        ranges += [(slot.offset, size - slot.offset) for slot in set(all_zeros) if slot.segment == segment]
        ends = [0, *(offset + nbytes for offset, nbytes in ranges)]
        assert all(offset >= end for end, (offset, _) in zip(ends, ranges, strict=False))
        assert ends[-1] == size
    # Each once, in the order in which it is first asked for.
    keys = dict.fromkeys(o.key for group in groups for o in group if o.in_place is None and o.source is not None)
    assert [move.slot for move in layout.moves] == [layout.slots[key] for key in keys]


sizes = st.one_of(st.integers(1, 300), st.sampled_from([63, 64, 65, PAGE_ALIGNED - 1, PAGE_ALIGNED, PAGE_ALIGNED + 1]))
operands = st.one_of(
    st.builds(packed, sizes, st.integers(0, 3)),
    st.builds(zeros, st.just(UINT8), sizes),
    st.builds(lambda nbytes: as_stored(stored(nbytes), (nbytes,)), sizes),
    st.builds(lambda count: as_stored(stored(4 * count, data_type=FLOAT, offset=2), (count,)), st.integers(1, 50)),
)


@settings(max_examples=300, deadline=None)
@given(groups=st.lists(st.lists(operands, max_size=4), max_size=8), segments=st.integers(1, 4))
def test_every_operand_has_room_of_its_own(groups: list[list[Operand]], segments: int) -> None:
    check(plan_layout(groups, segments), groups, segments)


def test_large_operands_start_on_a_page() -> None:
    groups = [[packed(1, 1), packed(PAGE_ALIGNED, 2), packed(1, 3), packed(PAGE_ALIGNED - 1, 4)]]
    offsets = [move.slot.offset for move in plan_layout(groups).moves]
    end = PAGE + PAGE_ALIGNED
    assert offsets == [0, PAGE, end, end + CACHE_LINE]


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_buffers_are_of_similar_size(segments: int) -> None:
    groups = [[packed(CACHE_LINE * size, size)] for size in range(1, 40)]
    layout = plan_layout(groups, segments)
    assert len(layout.sizes) == segments
    assert max(layout.sizes) - min(layout.sizes) <= 39 * CACHE_LINE


def test_the_operands_of_a_node_go_into_one_buffer() -> None:
    groups = [[packed(100, name), packed(200, name + 10)] for name in range(4)]
    layout = plan_layout(groups, 4)
    for group in groups:
        assert len({layout.slots[operand.key].segment for operand in group}) == 1
    assert {slot.segment for slot in layout.slots.values()} == {0, 1, 2, 3}


IN_PLACE = as_stored(stored(100), (100,))
PLANS: dict[str, tuple[list[list[Operand]], int, tuple[int, ...]]] = {
    "nothing": ([], 1, ()),
    "nothing to pack": ([[IN_PLACE]], 3, ()),
    "fewer groups than buffers": ([[packed(100, 1)], [IN_PLACE], [packed(50, 2)]], 5, (100, 50)),
    "the same of the same bytes": ([[packed(100, 1)], [packed(100, 1), packed(60, 2)]], 1, (128 + 60,)),
    "another of the same bytes": ([[packed(100, 1), packed(100, 1)._replace(repeat=2)]], 1, (128 + 100,)),
    "zeros share one run behind the rest": (
        [[zeros(UINT8, 10), packed(100, 1)], [zeros(UINT8, 500)], [packed(70, 2)]], 1, (128 + 128 + 500,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_how_large_buffers_are(name: str) -> None:
    groups, segments, wanted = PLANS[name]
    layout = plan_layout(groups, segments)
    assert layout.sizes == wanted
    check(layout, groups, segments)


def test_a_copy_is_moved_byte_by_byte() -> None:
    """One that is not aligned where it is stored: its elements do not matter."""
    operand = as_stored(stored(40, data_type=FLOAT, offset=2), (10,))
    (move,) = plan_layout([[operand]]).moves
    assert (move.operand.lines, move.operand.length, move.operand.bits) == (40, 1, 8)
    changed = operand._replace(order=Order.TRANSPOSED, lines=5, length=2, line_bytes=8)
    (move,) = plan_layout([[changed]]).moves
    assert move.operand is changed
