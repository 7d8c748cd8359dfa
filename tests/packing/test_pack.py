"""Every byte of the packed buffers, against packing the obvious way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.fusion.dequantize import QuantizedMatrix
from ort_qdq_plugin.fusion.matmul_nbits import operands_of
from ort_qdq_plugin.memory.buffer import PackedBuffer, make_buffers
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16
from ort_qdq_plugin.model.operands import Operand, Operands, as_stored
from ort_qdq_plugin.model.sources import ByteSource, FileSource, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.packing import bits as bits_module
from ort_qdq_plugin.packing import pack as pack_module
from ort_qdq_plugin.packing.layout import Layout, plan_layout
from ort_qdq_plugin.packing.pack import pack
from tests.packing.plain import Array, elements_of, packed_rows, raw_bytes, unsigned
from tests.support import descriptors, settled_descriptors


@pytest.fixture(autouse=True, scope="module")
def _many_threads() -> Iterator[None]:
    """Let even little be packed by as many threads as a test says."""
    with mock.patch.object(pack_module, "_BYTES_PER_THREAD", 1):
        yield


# (bits, signed) -> TensorProto.DataType
WEIGHT_TYPES = {(8, False): 2, (8, True): 3, (4, False): 21, (4, True): 22, (2, False): 25, (2, True): 26}
BITS = {FLOAT: 32, FLOAT16: 16, BFLOAT16: 16}


@dataclass(frozen=True)
class Case:
    """One weight to pack.

    `block` 0 with `per_tensor`: a single scale, else one per column. A `block` is cut into `parts`. `scales`: stored type,
    wanted type, factor.
    """

    bits: int
    signed: bool
    k_major: bool
    k: int
    n: int
    block: int = 32
    per_tensor: bool = False
    zero_points: bool = True
    scales: tuple[int, int, float] = (FLOAT, FLOAT, 1.0)
    centred: bool = False
    parts: int = 1
    seed: int = 0

    @property
    def block_size(self) -> int:
        return max(self.block // self.parts, 16) if self.block else 32

    @property
    def stored_blocks(self) -> int:
        return -(-self.k // self.block) if self.block else 1

    @property
    def blocks(self) -> int:
        return -(-self.k // self.block_size)


@dataclass(frozen=True)
class Drawn:
    """A case's numbers, one integer each and seen as [N, ..] lines, and the matrix as the package knows it."""

    case: Case
    operands: Operands
    weight: Array  # [N, K]
    scales: Array  # [N, blocks], their bits as unsigned integers
    zero_points: Array  # [N, blocks]

    def check(self, layout: Layout, images: list[NDArray[np.uint8]]) -> None:
        """Write what is expected of this weight into images of the buffers; check what is said to be in place."""
        case = self.case
        lines = {
            "B": unsigned(self.weight, case.bits, case.signed),
            "scales": self.scales,
            "zero_points": unsigned(self.zero_points, case.bits, case.signed),
        }
        scale_bits = BITS[case.scales[1]]
        row_bytes = {
            "B": case.blocks * case.block_size * case.bits // 8,
            "scales": case.blocks * scale_bits // 8,
            "zero_points": (case.blocks * case.bits + 7) // 8,
        }
        assert self.operands.keys() == lines.keys() - ({"zero_points"} if self.centred else set())
        for name, operand in self.operands.items():
            bits = scale_bits if name == "scales" else case.bits
            expected = packed_rows(lines[name], bits, row_bytes[name])
            assert operand.nbytes == expected.size
            slot = layout.slots.get(operand.key)
            if slot is None:
                self._expect_in_place(operand, lines[name], bits, row_bytes[name])
            else:
                images[slot.segment][slot.offset : slot.offset + operand.nbytes] = expected.reshape(-1)

    @property
    def centred(self) -> bool:
        """Whether zero points are those that MatMulNBits takes by itself."""
        return not self.case.zero_points and (self.case.signed or self.case.centred)

    @staticmethod
    def _expect_in_place(operand: Operand, lines: Array, bits: int, row_bytes: int) -> None:
        assert operand.in_place is not None
        assert operand.in_place.is_aligned
        stored = operand.in_place.read().reshape(len(lines), row_bytes)
        assert stored.size == operand.nbytes
        for line, want in zip(stored, lines, strict=True):
            # Whatever lies in the padding of a last byte is nobody's element.
            np.testing.assert_array_equal(elements_of(line.tobytes(), bits, len(want)), want)


def converted(bits: Array, stored: int, wanted: int, factor: float) -> Array:
    """Bits of floating-point numbers of one type -> those of the other's, the numbers times `factor`."""
    if stored == wanted and factor == 1.0:
        return bits
    as_float = (bits << 16 if stored == BFLOAT16 else bits).astype(np.uint16 if stored == FLOAT16 else np.uint32)
    numbers = as_float.view(np.float16 if stored == FLOAT16 else np.float32).astype(np.float32) * np.float32(factor)
    rounded = numbers.astype(np.float16 if wanted == FLOAT16 else np.float32)
    result: Array = rounded.view(np.uint16 if wanted == FLOAT16 else np.uint32).astype(np.int64)
    return result


def draw(case: Case, folder: Path | None, offset: int = 13) -> Drawn:
    """Random numbers for a case, stored at `offset` of a file in `folder`, or of memory."""
    rng = np.random.default_rng(case.seed)
    stored_type, wanted_type, factor = case.scales
    low = -(1 << case.bits - 1) if case.signed else 0
    count = (1, 1) if case.per_tensor and not case.block else (case.n, case.stored_blocks)
    weight = rng.integers(low, low + (1 << case.bits), (case.n, case.k))
    numbers = rng.uniform(0.001, 2.0, count).astype(np.float16 if stored_type == FLOAT16 else np.float32)
    scales = numbers.view(np.uint16 if stored_type == FLOAT16 else np.uint32).astype(np.int64)
    scales = scales >> 16 if stored_type == BFLOAT16 else scales
    zero_points = rng.integers(low, low + (1 << case.bits), count)
    if not case.zero_points:
        zero_points = np.zeros(count, np.int64)

    def stored(name: str, data_type: int, array: Array, bits: int) -> StoredTensor:
        shape = array.T.shape if case.k_major else array.shape
        if not case.block and name != "weight":
            shape = () if case.per_tensor else (case.n,)
        raw = raw_bytes(array.T if case.k_major else array, bits, dirty=True)
        source: ByteSource = MemorySource(b"\xa5" * offset + raw + b"\xa5" * 3)
        if folder is not None:
            path = folder / f"{name}.bin"
            path.write_bytes(b"\xa5" * offset + raw + b"\xa5" * 3)
            source = FileSource(str(path))
        return StoredTensor(name, data_type, shape, source, offset=offset, nbytes=len(raw))

    weight_type = WEIGHT_TYPES[case.bits, case.signed]
    matrix = QuantizedMatrix(
        weight=stored("weight", weight_type, weight, case.bits),
        scales=stored("scales", stored_type, scales, BITS[stored_type]),
        zero_points=stored("zero_points", weight_type, zero_points, case.bits) if case.zero_points else None,
        centred=not case.zero_points and (case.signed or case.centred),
        k=case.k,
        n=case.n,
        k_major=case.k_major,
        block=case.block,
    )

    def per_block(array: Array) -> Array:
        repeat = case.block // case.block_size if case.block else case.blocks
        return np.broadcast_to(np.repeat(array, repeat, axis=1)[:, : case.blocks], (case.n, case.blocks))

    wanted = converted(scales, stored_type, wanted_type, factor)
    operands = operands_of(matrix, case.block_size, wanted_type, factor)
    return Drawn(case, operands, weight, per_block(wanted), per_block(zero_points))


def buffers_for(layout: Layout, kind: str, folder: Path | None = None) -> list[PackedBuffer]:
    return make_buffers(layout.sizes, kind, None if folder is None else str(folder))


def pack_and_check(drawn: list[Drawn], threads: int, kind: str) -> Layout:
    layout = plan_layout([one.operands.values() for one in drawn], threads)
    buffers = buffers_for(layout, kind)
    if buffers:
        pack(layout, buffers, threads)
    images = [np.zeros(size, np.uint8) for size in layout.sizes]
    for one in drawn:
        one.check(layout, images)
    for buffer, image in zip(buffers, images, strict=True):
        buffer.seal()
        np.testing.assert_array_equal(buffer.array, image)
    return layout


sizes = st.one_of(st.integers(1, 200), st.sampled_from([1, 2, 3, 4, 8, 32, 64, 65, 127, 128, 256, 383]))
cases = st.builds(
    Case,
    bits=st.sampled_from([2, 4, 8]),
    signed=st.booleans(),
    k_major=st.booleans(),
    k=sizes,
    n=sizes,
    block=st.sampled_from([0, 16, 32, 64, 128, 256, 512]),
    per_tensor=st.booleans(),
    zero_points=st.booleans(),
    scales=st.sampled_from(
        [
            (FLOAT, FLOAT, 1.0),
            (FLOAT16, FLOAT16, 1.0),
            (FLOAT16, FLOAT, 1.0),
            (FLOAT, FLOAT16, 1.0),
            (BFLOAT16, FLOAT, 1.0),
            (BFLOAT16, FLOAT16, 1.0),
            (FLOAT, FLOAT, 0.37),
            (FLOAT16, FLOAT16, 3.0),
        ]
    ),
    centred=st.booleans(),
    parts=st.sampled_from([1, 1, 2, 4]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=250, deadline=None)
@given(case=cases, threads=st.integers(1, 4), kind=st.sampled_from(["file", "memory"]), offset=st.sampled_from([13, 16]))
@example(Case(4, False, True, 64, 2, block=0, per_tensor=True), 1, "memory", 16)
@example(
    Case(2, True, False, 64, 4, block=0, per_tensor=True), 1, "memory", 16
)  # a lone zero point's padding is no second one
@example(Case(4, False, False, 31, 1), 1, "memory", 16)
def test_every_byte(case: Case, threads: int, kind: str, offset: int) -> None:
    pack_and_check([draw(case, None, offset)], threads, kind)


@settings(max_examples=100, deadline=None)
@given(
    many=st.lists(cases, min_size=1, max_size=4),
    threads=st.integers(1, 4),
    kind=st.sampled_from(["file", "memory"]),
    panel=st.sampled_from([1, 4096, 1 << 15]),
    scratch=st.sampled_from([1, 500, 10_000]),
    band=st.sampled_from([8, 16, 64]),
)
def test_every_byte_in_many_small_steps(
    many: list[Case], threads: int, kind: str, panel: int, scratch: int, band: int
) -> None:
    with (
        mock.patch.object(bits_module, "_PANEL_BYTES", panel),
        mock.patch.object(bits_module, "_MIN_PANEL_COLUMNS", 8),
        mock.patch.object(pack_module, "_SCRATCH_BYTES", scratch),
        mock.patch.object(pack_module, "_MIN_BAND_LINES", band),
    ):
        pack_and_check([draw(case, None) for case in many], threads, kind)


@settings(max_examples=12, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    signed=st.booleans(),
    k_major=st.booleans(),
    odd=st.booleans(),
    threads=st.integers(1, 4),
)
def test_larger_than_a_panel(bits: int, signed: bool, k_major: bool, odd: bool, threads: int) -> None:
    case = Case(bits, signed, k_major, 1040 - odd, 1536 - odd, seed=bits)
    pack_and_check([draw(case, None)], threads, "file")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_from_files(tmp_path: Path, kind: str) -> None:
    pack_and_check([draw(Case(4, True, True, 300, 77), tmp_path)], 2, kind)


def test_n_major_unsigned_weights_stay_where_they_are() -> None:
    layout = pack_and_check([draw(Case(4, False, False, 256, 48), None, offset=16)], 2, "memory")
    assert layout.sizes == ()
    assert not layout.moves


def some_layout(folder: Path) -> tuple[Layout, list[PackedBuffer]]:
    layout = plan_layout([draw(Case(4, True, True, 512, 96), folder).operands.values()], 2)
    return layout, buffers_for(layout, "file", folder)


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_reaches_the_total(tmp_path: Path, threads: int) -> None:
    layout, buffers = some_layout(tmp_path)
    seen: list[tuple[int, int]] = []
    with mock.patch.object(pack_module, "_SCRATCH_BYTES", 4096):
        pack(layout, buffers, threads, lambda done, total: seen.append((done, total)))
    totals = {total for _, total in seen}
    sources = [move.operand.source for move in layout.moves]
    assert totals == {sum(source.nbytes for source in sources if source is not None)}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]
    assert len(seen) > len(layout.moves)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError("enough"), KeyboardInterrupt()])
def test_an_exception_in_progress_ends_it(tmp_path: Path, threads: int, error: BaseException) -> None:
    layout, buffers = some_layout(tmp_path)
    calls: list[int] = []

    def stop(done: int, _: int) -> None:
        calls.append(done)
        raise error

    before = threading.active_count()
    with mock.patch.object(pack_module, "_SCRATCH_BYTES", 4096), pytest.raises(type(error)):
        pack(layout, buffers, threads, stop)
    assert len(calls) <= threads, "others may finish the step they are at, no more"
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_that_shrinks_is_noticed(tmp_path: Path, threads: int) -> None:
    layout, buffers = some_layout(tmp_path)
    os.truncate(tmp_path / "weight.bin", 100)
    with pytest.raises(SourceChangedError, match=r"weight\.bin"):
        pack(layout, buffers, threads)


def test_a_path_that_is_replaced_does_no_harm(tmp_path: Path) -> None:
    drawn = draw(Case(4, True, True, 256, 32), tmp_path)
    (tmp_path / "new").write_bytes(b"something else")
    (tmp_path / "new").replace(tmp_path / "weight.bin")
    pack_and_check([drawn], 1, "memory")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = settled_descriptors()
    layout, buffers = some_layout(tmp_path)
    pack(layout, buffers, 3)
    for buffer in buffers:
        buffer.discard()
    del layout, buffers, buffer
    assert descriptors() == before
    assert {path.name for path in tmp_path.iterdir()} == {"weight.bin", "scales.bin", "zero_points.bin"}


def test_the_same_bytes_are_packed_once() -> None:
    one = draw(Case(4, True, True, 128, 64), None)
    layout = plan_layout([one.operands.values(), [operand._replace() for operand in one.operands.values()]])
    assert len(layout.slots) == 3
    assert len(layout.moves) == 3


@settings(max_examples=60, deadline=None)
@given(nbytes=st.integers(1, 5000), offset=st.integers(1, 7), threads=st.integers(1, 3), chunk=st.sampled_from([64, 1000]))
def test_what_is_not_aligned_is_copied(nbytes: int, offset: int, threads: int, chunk: int) -> None:
    elements = np.random.default_rng(nbytes).standard_normal(nbytes).astype(np.float32)
    stored = StoredTensor(
        "table", FLOAT, (nbytes,), MemorySource(b"x" * offset + elements.tobytes()), offset=offset, nbytes=4 * nbytes
    )
    operand = as_stored(stored, (1, nbytes))
    assert operand.is_copy
    assert (operand.in_place is stored) == (offset % 4 == 0)
    layout = plan_layout([[operand]], threads)
    if offset % 4 == 0:
        assert layout.sizes == ()
        return
    buffers = buffers_for(layout, "memory")
    with mock.patch.object(pack_module, "_COPY_BYTES", chunk):
        pack(layout, buffers, threads)
    np.testing.assert_array_equal(buffers[0].array, elements.view(np.uint8))
