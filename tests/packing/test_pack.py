"""Every byte of the packed buffers, against packing the obvious way."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.memory.buffer import PackedBuffer, make_buffers
from ort_qdq_plugin.model.quantized import BFLOAT16, FLOAT, FLOAT16, FusedWeight, QuantizedMatrix
from ort_qdq_plugin.model.tensors import ByteSource, FileSource, MemorySource, StoredTensor
from ort_qdq_plugin.packing import bits as bits_module
from ort_qdq_plugin.packing import pack as pack_module
from ort_qdq_plugin.packing.layout import Layout, Operand, plan_layout
from ort_qdq_plugin.packing.pack import pack
from tests.packing.plain import Array, elements_of, packed_rows, raw_bytes, unsigned
from tests.support import descriptors, settled_descriptors

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
    fused: FusedWeight
    weight: Array  # [N, K]
    scales: Array  # [N, blocks], their bits as unsigned integers
    zero_points: Array  # [N, blocks]

    def check(self, layout: Layout, images: list[NDArray[np.uint8]]) -> None:
        """Write what is expected of this weight into images of the buffers; check what is said to be in place."""
        case, placed = self.case, layout.of(self.fused)
        low = case.blocks * case.block_size * case.bits // 8
        self._expect(images, placed.b, unsigned(self.weight, case.bits, case.signed), case.bits, low)
        scale_bits = BITS[case.scales[1]]
        self._expect(images, placed.scales, self.scales, scale_bits, case.blocks * scale_bits // 8)
        if placed.zero_points is not None:
            zeros = unsigned(self.zero_points, case.bits, case.signed)
            self._expect(images, placed.zero_points, zeros, case.bits, (case.blocks * case.bits + 7) // 8)
        assert (placed.zero_points is None) == self.fused.matrix.centred

    @staticmethod
    def _expect(images: list[NDArray[np.uint8]], operand: Operand, lines: Array, bits: int, row_bytes: int) -> None:
        expected = packed_rows(lines, bits, row_bytes)
        assert operand.nbytes == expected.size
        if operand.in_place is None:
            images[operand.segment][operand.offset : operand.offset + operand.nbytes] = expected.reshape(-1)
            return
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


def draw(case: Case, folder: Path | None) -> Drawn:
    """Random numbers for a case, stored in a file in `folder`, or in memory."""
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
        source: ByteSource = MemorySource(b"\xa5" * 13 + raw + b"\xa5" * 3)
        if folder is not None:
            path = folder / f"{name}.bin"
            path.write_bytes(b"\xa5" * 13 + raw + b"\xa5" * 3)
            source = FileSource(str(path))
        return StoredTensor(name, data_type, shape, source, 13, len(raw))

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

    fused = FusedWeight(matrix, case.block_size, wanted_type, factor)
    wanted = converted(scales, stored_type, wanted_type, factor)
    return Drawn(case, fused, weight, per_block(wanted), per_block(zero_points))


def buffers_for(layout: Layout, kind: str, folder: Path | None = None) -> list[PackedBuffer]:
    return make_buffers(layout.sizes, kind, None if folder is None else str(folder))


def pack_and_check(drawn: list[Drawn], threads: int, kind: str) -> Layout:
    layout = plan_layout([one.fused for one in drawn], threads)
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
@given(case=cases, threads=st.integers(1, 4), kind=st.sampled_from(["file", "memory"]))
@example(Case(4, False, True, 64, 2, block=0, per_tensor=True), 1, "memory")
@example(Case(2, True, False, 64, 4, block=0, per_tensor=True), 1, "memory")  # a lone zero point's padding is no second one
@example(Case(4, False, False, 31, 1), 1, "memory")
def test_every_byte(case: Case, threads: int, kind: str) -> None:
    pack_and_check([draw(case, None)], threads, kind)


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
    layout = pack_and_check([draw(Case(4, False, False, 256, 48), None)], 2, "memory")
    assert layout.sizes == ()
    assert not layout.moves


def some_layout(folder: Path) -> tuple[Layout, list[PackedBuffer]]:
    layout = plan_layout([draw(Case(4, True, True, 512, 96), folder).fused], 2)
    return layout, buffers_for(layout, "file", folder)


@pytest.mark.parametrize("threads", [1, 3])
def test_progress_reaches_the_total(tmp_path: Path, threads: int) -> None:
    layout, buffers = some_layout(tmp_path)
    seen: list[tuple[int, int]] = []
    with mock.patch.object(pack_module, "_SCRATCH_BYTES", 4096):
        pack(layout, buffers, threads, lambda done, total: seen.append((done, total)))
    totals = {total for _, total in seen}
    assert totals == {sum(move.source.nbytes for move in layout.moves)}
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
    layout = plan_layout([one.fused, replace(one.fused, matrix=replace(one.fused.matrix))])
    assert len(layout.weights) == 1
    assert len(layout.moves) == 3
