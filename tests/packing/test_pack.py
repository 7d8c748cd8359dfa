"""Every byte of the packed buffers, against packing the obvious way."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.memory.buffer import PackedBuffer, make_buffers
from ort_qdq_plugin.model.operands import Operand, Order, as_stored, zeros
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.packing import bits as bits_module
from ort_qdq_plugin.packing import pack as pack_module
from ort_qdq_plugin.packing.layout import Layout, plan_layout
from ort_qdq_plugin.packing.pack import pack
from ort_qdq_plugin.system import threads as threads_module
from tests.interrupting import Left, interrupted, settled
from tests.packing.plain import BITS, operands, packed_lines, stored
from tests.support import descriptors, settled_descriptors

INT2, INT4, UINT4, UINT8, FLOAT = (
    TensorProto.INT2, TensorProto.INT4, TensorProto.UINT4, TensorProto.UINT8, TensorProto.FLOAT
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _many_threads() -> Iterator[None]:
    """Let even little be packed by as many threads as a test says."""
    with mock.patch.object(pack_module, "_BYTES_PER_THREAD", 1):
        yield


def weight(source: StoredTensor, order: Order, lines: int, length: int) -> Operand:
    """A weight of so many columns and rows, its lines padded to whole blocks of 32."""
    bits, flip = BITS[source.data_type], source.data_type in (TensorProto.INT2, TensorProto.INT4, TensorProto.INT8)
    line_bytes = -(-length // 32) * 4 * bits
    return Operand(UINT8, (lines * line_bytes,), lines, length, line_bytes, source, order, bits, flip)


def pack_and_check(many: Sequence[Operand], threads: int, kind: str) -> None:
    layout = plan_layout([many[:2], many[2:]], threads)
    buffers = make_buffers(layout.sizes, kind, None)
    if buffers:
        pack(layout, buffers, threads)
    images = [np.zeros(size, np.uint8) for size in layout.sizes]
    for operand in many:
        slot = layout.slots.get(operand.key)
        assert (slot is None) == (operand.in_place is not None)
        if slot is not None:
            images[slot.segment][slot.offset : slot.offset + operand.nbytes] = packed_lines(operand).reshape(-1)
    for buffer, image in zip(buffers, images, strict=True):
        buffer.seal()
        np.testing.assert_array_equal(buffer.array, image)


sizes = st.one_of(st.integers(1, 200), st.sampled_from([1, 2, 3, 4, 8, 32, 64, 65, 127, 128, 256, 383]))
offsets = st.sampled_from([13, 16])
anything = st.one_of(
    operands(sizes, offsets, dirty=True),
    operands(sizes, offsets, dirty=True),
    st.builds(lambda count: as_stored(stored(FLOAT, (count,), offset=13), (1, count)), st.integers(1, 5000)),
    st.builds(zeros, st.just(UINT8), sizes),
)


@settings(max_examples=200, deadline=None)
@given(
    many=st.lists(anything, min_size=1, max_size=4),
    threads=st.integers(1, 4),
    kind=st.sampled_from(["file", "memory"]),
    panel=st.sampled_from([1, 4096, 1 << 15, 768 << 10]),
    scratch=st.sampled_from([1, 500, 10_000, 1 << 20]),
    band=st.sampled_from([8, 16, 64]),
    copied=st.sampled_from([64, 1000, 1 << 20]),
)
@example([weight(stored(UINT4, (), dirty=True), Order.SPREAD, 2, 2)], 1, "memory", 1 << 20, 1 << 20, 64, 1 << 20)
# A lone zero point's padding is no second one.
@example([weight(stored(INT2, (), dirty=True), Order.SPREAD, 4, 2)], 1, "memory", 1 << 20, 1 << 20, 64, 1 << 20)
@example([weight(stored(UINT4, (1, 31), dirty=True), Order.ROWS, 1, 31)], 1, "memory", 1 << 20, 1 << 20, 64, 1 << 20)
def test_every_byte(many: list[Operand], threads: int, kind: str, panel: int, scratch: int, band: int, copied: int) -> None:
    with (
        mock.patch.multiple(bits_module, _PANEL_BYTES=panel, _MIN_PANEL_COLUMNS=8),
        mock.patch.multiple(pack_module, _SCRATCH_BYTES=scratch, _MIN_BAND_LINES=band, _COPY_BYTES=copied),
    ):
        pack_and_check(many, threads, kind)


@pytest.mark.parametrize("order", [Order.ROWS, Order.TRANSPOSED])
@pytest.mark.parametrize("data_type", [INT2, INT4, UINT4, UINT8])
@pytest.mark.parametrize("odd", [0, 1])
def test_larger_than_a_panel(data_type: int, order: Order, odd: int) -> None:
    lines, length = 1536 - odd, 1040 - odd
    shape = (length, lines) if order is Order.TRANSPOSED else (lines, length)
    pack_and_check([weight(stored(data_type, shape, dirty=True), order, lines, length)], 1 + odd, "file")


def of_file(folder: Path, lines: int, length: int) -> Operand:
    """A signed K-major weight, stored in weight.bin."""
    made = stored(INT4, (length, lines), seed=1, offset=13, dirty=True)
    (folder / "weight.bin").write_bytes(made.source.buffer())
    return weight(made._replace(source=FileSource(str(folder / "weight.bin"))), Order.TRANSPOSED, lines, length)


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.needs("free names")
def test_files_are_read_though_others_took_their_place(tmp_path: Path, kind: str) -> None:
    operand = of_file(tmp_path, 77, 300)
    (tmp_path / "new").write_bytes(b"something else")
    (tmp_path / "new").replace(tmp_path / "weight.bin")
    pack_and_check([operand], 2, kind)


def some_layout(folder: Path) -> tuple[Layout, list[PackedBuffer]]:
    scales, zero_points = stored(FLOAT, (16, 96), offset=13), stored(INT4, (16, 96))
    others = [as_stored(scales, scales.shape), as_stored(zero_points, zero_points.shape)._replace(flip=True)]
    layout = plan_layout([[of_file(folder, 96, 512)], others], 2)
    return layout, make_buffers(layout.sizes, "file", str(folder))


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_reaches_the_total(tmp_path: Path, threads: int) -> None:
    layout, buffers = some_layout(tmp_path)
    seen: list[tuple[int, int]] = []
    with mock.patch.object(pack_module, "_SCRATCH_BYTES", 4096):
        pack(layout, buffers, threads, lambda done, total: seen.append((done, total)))
    sources = [move.operand.source for move in layout.moves]
    assert {total for _, total in seen} == {sum(source.nbytes for source in sources if source is not None)}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]
    assert len(seen) > len(layout.moves)


@pytest.mark.parametrize(("threads", "on_caller"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt()])
def test_an_exception_in_progress_ends_it(tmp_path: Path, threads: int, on_caller: bool, error: BaseException) -> None:
    """Whichever thread it is on."""
    layout, buffers = some_layout(tmp_path)
    calls: list[int] = []
    caller = threading.get_ident()

    def stop(done: int, _: int) -> None:
        time.sleep(0.001)
        if calls or (threading.get_ident() == caller) is on_caller:
            calls.append(done)
        if len(calls) == 1:
            raise error

    before = Left.at_rest(tmp_path)
    with mock.patch.object(pack_module, "_SCRATCH_BYTES", 4096), pytest.raises(type(error)):
        pack(layout, buffers, threads, stop)
    assert len(calls) <= threads, "others may finish the step they are at, no more"
    assert settled(tmp_path, before) == before


def test_fewer_threads_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There can be none when the interpreter ends."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    with mock.patch.object(pack_module, "_SCRATCH_BYTES", 4096):
        pack_and_check([of_file(tmp_path, 96, 512)], 3, "file")


def test_an_interrupt_at_any_place_ends_all_threads(tmp_path: Path) -> None:
    """And what they have used goes with it."""
    layout, _ = some_layout(tmp_path)

    def work() -> None:
        pack(layout, make_buffers(layout.sizes, "file", str(tmp_path)), 3)

    work()  # Each thread makes sessions of ONNX Runtime.
    before, number = Left.at_rest(tmp_path), 1
    while interrupted(number, work, lambda path: path in (pack_module.__file__, threads_module.__file__)):
        assert settled(tmp_path, before) == before, number
        number += 4
    assert number > 50


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_shrinks_is_noticed(tmp_path: Path, threads: int) -> None:
    layout, buffers = some_layout(tmp_path)
    os.truncate(tmp_path / "weight.bin", 100)
    with pytest.raises(SourceChangedError, match=r"weight\.bin"):
        pack(layout, buffers, threads)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = settled_descriptors()
    layout, buffers = some_layout(tmp_path)
    pack(layout, buffers, 3)
    for buffer in buffers:
        buffer.discard()
    del layout, buffers, buffer
    assert descriptors() == before
    assert [path.name for path in tmp_path.iterdir()] == ["weight.bin"]
