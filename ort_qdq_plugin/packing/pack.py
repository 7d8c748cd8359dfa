"""Carrying out a layout: every source byte is read once, moved, and written where it goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import numpy as np

from ort_qdq_plugin.folding.elements import pack_elements, unpack_elements
from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.model.elements import BFLOAT16, ELEMENTS, bits_of, top_bits
from ort_qdq_plugin.model.operands import Conversion, Operand, Order
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.packing.bits import Transposer, widen_elements
from ort_qdq_plugin.packing.layout import Layout, Move, Slot
from ort_qdq_plugin.system.threads import Work
from ort_qdq_plugin.values import NamedTuple

__all__ = ["pack"]

# Bytes of the scratch that all threads together read into, and the most that one of them gets.
_SCRATCH_BYTES = 160 << 20
_MAX_THREAD_SCRATCH_BYTES = 64 << 20

# Bytes that are copied or widened at once: they stay in cache between being read and being written.
_COPY_BYTES = 1 << 20

# Bytes that are computed for one step: that takes most of its time, and all threads shall have some.
_COMPUTED_BYTES = 32 << 20

# With fewer bytes for each of them, threads wait for each other more than they help.
_BYTES_PER_THREAD = 16 << 20

# A multiple of eight rows: such bands start on a byte's border even if rows do not.
_MIN_BAND_LINES = 64

# Rows that do not end on a byte's border are unpacked: a byte for each element, in several arrays at once.
_UNALIGNED_BYTES_PER_ELEMENT = 4


class _Band(NamedTuple):
    """Rows first..last of a move's source, which is a matrix [rows, columns]: what one step of packing moves."""

    move: Move
    source: StoredTensor
    first: int
    last: int

    @property
    def operand(self) -> Operand:
        return self.move.operand

    @property
    def columns(self) -> int:
        return self.operand.lines if self.operand.order is Order.TRANSPOSED else self.operand.stored_length

    @property
    def start(self) -> int:
        """The element of each target line that the band begins at."""
        return self.first * self.operand.repeat if self.operand.order is Order.TRANSPOSED else 0

    @property
    def source_bytes(self) -> int:
        return ((self.last - self.first) * self.columns * self.operand.bits + 7) // 8


def pack(layout: Layout, buffers: Sequence[PackedBuffer], threads: int, progress: Progress | None = None) -> None:
    """Carry out a layout, on this many threads. Scratch stays below 256 MB, whatever the model's size.

    The buffers are zeroed, one for each of `layout.sizes`. The caller has to check afterwards whether the sources are still
    what was opened.

    Raises:
        SourceChangedError, SourceUnreadableError, OSError: Reading or writing failed. The content of the buffers is
            undefined then, also where `progress` raises.
    """
    total = sum(move.operand.nbytes for move in layout.moves)
    threads = min(threads, total // _BYTES_PER_THREAD + 1)
    share = min(_SCRATCH_BYTES // threads, _MAX_THREAD_SCRATCH_BYTES)
    bands = [band for move in layout.moves for band in _bands(move, share)]
    job = _Job(buffers, bands, progress)
    workers = min(threads, len(bands))
    if workers > 1:
        _run_parallel(job, workers)
    else:
        job.work(0)


def _run_parallel(job: _Job, workers: int) -> None:
    """Do the job on `workers` threads, or on fewer where no more can be started."""
    others = [Work(partial(job.work_apart, worker)) for worker in range(1, workers)]
    try:
        for other in others:
            with suppress(RuntimeError):
                other.start()
        job.work(0)
    except BaseException:
        job.cancelled = True
        raise
    finally:
        for other in others:
            if not other.take_back():
                other.wait()
        errors = [error for other in others if (error := other.take_error()) is not None]
    # The exception refers to this frame. If the frame referred to the exception and to the buffers, these would stay alive
    # until the garbage collector ran.
    del job, others
    try:
        if errors:
            raise errors[0]
    finally:
        del errors


def _bands(move: Move, scratch_bytes: int) -> Iterator[_Band]:
    """Cut a move so that what one step reads, and unpacks, fits the scratch."""
    operand = move.operand
    if operand.source is None:
        # Zeros: the buffer has them already.
        return
    if operand.order is Order.SPREAD:
        yield _Band(move, operand.source, 0, 1)
        return
    if operand.stack > 1 and not operand.is_copy:
        for matrix in _matrices(move, operand.source):
            yield from _bands(matrix, scratch_bytes)
        return
    lines = operand.stored_length if operand.order is Order.TRANSPOSED else operand.lines
    whole = _Band(move, operand.source, 0, lines)
    aligned = whole.columns * operand.bits % 8 == 0
    row_bytes = whole.columns * operand.bits // 8 if aligned else whole.columns * _UNALIGNED_BYTES_PER_ELEMENT
    if not operand.source.source.is_stored:
        scratch_bytes = min(scratch_bytes, _COMPUTED_BYTES)
    if operand.is_copy or (operand.widening is not None and operand.order is Order.ROWS):
        scratch_bytes = min(scratch_bytes, _COPY_BYTES)
    rows = max(scratch_bytes // row_bytes, _MIN_BAND_LINES) // _MIN_BAND_LINES * _MIN_BAND_LINES
    for first in range(0, lines, rows):
        yield whole._replace(first=first, last=min(first + rows, lines))


def _matrices(move: Move, source: StoredTensor) -> Iterator[Move]:
    """The moves of a stack's matrices, each to its own lines of the operand."""
    operand, (segment, offset) = move.operand, move.slot
    lines = operand.lines // operand.stack
    stack = source._replace(shape=(operand.stack, operand.stored_length, lines))
    for at in range(operand.stack):
        matrix = operand._replace(lines=lines, stack=1, source=stack.part(at))
        yield Move(matrix, Slot(segment, offset + at * lines * operand.line_bytes))


class _Job:
    """What the threads of one pack() share: bands still to do, by buffer, the progress, and scratch for each thread."""

    def __init__(self, buffers: Sequence[PackedBuffer], bands: Sequence[_Band], progress: Progress | None) -> None:
        self._buffers = buffers
        self._waiting: list[list[_Band]] = [[] for _ in buffers]
        for band in sorted(bands, key=lambda band: band.source_bytes):
            self._waiting[band.move.slot.segment].append(band)
        self._total = sum(band.source_bytes for band in bands)
        self._done = 0
        self._progress = progress
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self.cancelled = False

    def work_apart(self, worker: int) -> None:
        """`work` on a thread of its own: what it raises stops the others."""
        try:
            self.work(worker)
        except BaseException:
            self.cancelled = True
            raise

    def work(self, worker: int) -> None:
        """Do bands of buffer `worker`, then of the others, until none is left.

        Each thread starts with a buffer of its own, because file systems let one thread at a time write to a file.
        """
        own = worker % len(self._waiting)
        own_first = [*self._waiting[own:], *self._waiting[:own]]
        while not self.cancelled:
            with self._lock:
                band = next((waiting.pop() for waiting in own_first if waiting), None)
            if band is None:
                return
            self._run(band)
            with self._lock:
                self._done += band.source_bytes
                if self._progress is not None:
                    self._progress(self._done, self._total)

    def _run(self, band: _Band) -> None:
        operand = band.operand
        if operand.order is Order.SPREAD:
            self._put(band, 0, _spread(operand, band.source))
        elif band.columns * operand.bits % 8:
            self._unaligned(band)
        elif operand.order is Order.ROWS:
            data = _flipped(operand, self._read(band, 1))
            self._put(band, band.first, _finished(band, data.reshape(band.last - band.first, -1)))
        else:
            self._transpose(band)

    def _transpose(self, band: _Band) -> None:
        operand = band.operand
        matrix = self._read(band, max(1, 8 // operand.bits)).reshape(-1, band.columns * operand.bits // 8)
        # The rows that fill up the last group must come out as zeros.
        matrix[band.last - band.first :] = top_bits(operand.bits) if operand.flip else 0
        for first, lines in self._transposer().transposed(matrix, operand.bits, operand.flip):
            self._put(band, first, _finished(band, lines))

    def _unaligned(self, band: _Band) -> None:
        """Move rows that do not end on a byte's border, element by element."""
        operand = band.operand
        rows = band.last - band.first
        data = _flipped(operand, self._read(band, 1))
        elements = unpack_elements(data, operand.bits)[: rows * band.columns].reshape(rows, band.columns)
        if operand.order is Order.ROWS:
            self._put(band, band.first, _finished(band, pack_elements(elements, operand.bits)))
            return
        for first, lines in self._transposer().transposed(np.ascontiguousarray(elements), 8, False):
            self._put(band, first, _finished(band, pack_elements(lines, operand.bits)))

    def _put(self, band: _Band, first: int, lines: np.ndarray) -> None:
        """Write uint8 `lines` [count, n] from line `first` of the operand on, each from the band's element on."""
        buffer, operand = self._buffers[band.move.slot.segment], band.operand
        offset = band.move.slot.offset + first * operand.line_bytes
        if lines.shape[1] == operand.line_bytes:
            buffer.write(offset, lines)
            return
        start, span = band.start * _target_bits(operand) // 8, len(lines) * operand.line_bytes
        window = buffer.array[offset : offset + span].reshape(len(lines), operand.line_bytes)
        window[:, start : start + lines.shape[1]] = lines
        buffer.trim(offset, span)

    def _read(self, band: _Band, row_multiple: int) -> np.ndarray:
        """The band's bytes in this thread's scratch, with room for rows up to the next multiple."""
        rows = band.last - band.first
        room = -(-rows // row_multiple) * row_multiple * band.columns * band.operand.bits
        scratch: np.ndarray | None = getattr(self._of_thread, "scratch", None)
        if scratch is None or scratch.size * 8 < room:
            scratch = self._of_thread.scratch = np.empty((room + 7) // 8, np.uint8)
        start = band.first * band.columns * band.operand.bits // 8
        band.source.read_range(start, scratch[: band.source_bytes])
        return scratch[: (room + 7) // 8]

    def _transposer(self) -> Transposer:
        transposer: Transposer | None = getattr(self._of_thread, "transposer", None)
        if transposer is None:
            transposer = self._of_thread.transposer = Transposer()
        return transposer


def _flipped(operand: Operand, data: np.ndarray) -> np.ndarray:
    """The uint8 array `data` itself, with the top bit of every element flipped where the operand asks for it."""
    if operand.flip:
        np.bitwise_xor(data, np.uint8(top_bits(operand.bits)), out=data)
    return data


def _finished(band: _Band, lines: np.ndarray) -> np.ndarray:
    """`lines` of the source, uint8 [count, n], as they go into the target: converted or widened, each element repeated."""
    operand = band.operand
    room = operand.length - band.start
    if operand.conversion is not None:
        lines = _converted(np.ascontiguousarray(lines), operand.conversion)
    if operand.widening is not None and operand.repeat == 1:
        of_line = min(band.last - band.first, room) if operand.order is Order.TRANSPOSED else room
        return widen_elements(lines, of_line, operand.bits, operand.widening)
    if operand.repeat == 1:
        return lines
    if operand.bits < 8:
        elements = _widened(unpack_elements(lines, operand.bits)[:, : -(-room // operand.repeat)], operand)
        return pack_elements(np.repeat(elements, operand.repeat, axis=1)[:, :room], _target_bits(operand))
    elements = np.ascontiguousarray(lines).view(f"u{_target_bits(operand) // 8}")
    return np.ascontiguousarray(np.repeat(elements, operand.repeat, axis=1)[:, :room]).view(np.uint8)


def _target_bits(operand: Operand) -> int:
    """Bits of an element of the target."""
    if operand.widening is not None:
        return 2 * operand.bits
    return operand.bits if operand.conversion is None else bits_of(operand.conversion.target)


def _widened(elements: np.ndarray, operand: Operand) -> np.ndarray:
    """uint8 `elements` of the source, one in each byte, as elements of the target."""
    return elements if operand.widening is None else elements + np.uint8(operand.widening)


def _converted(data: np.ndarray, conversion: Conversion) -> np.ndarray:
    """Contiguous uint8 `data` [.., n bytes] with its floating-point elements converted."""
    if conversion.source == BFLOAT16:
        # bfloat16 is the upper half of a float.
        values = (data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = data.view(ELEMENTS[conversion.source].numpy).astype(np.float32)
    converted: np.ndarray = values.astype(ELEMENTS[conversion.target].numpy).view(np.uint8)
    return converted


def _spread(operand: Operand, source: StoredTensor) -> np.ndarray:
    """The lines, uint8 [lines, ceil(length*bits/8)], of an operand whose lines each repeat one element."""
    data = source.read()
    if operand.bits > 8:
        if operand.conversion is not None:
            data = _converted(data, operand.conversion)
        values = np.broadcast_to(data.view(f"u{data.size // source.elements}"), operand.lines)
        return np.repeat(values, operand.length).view(np.uint8).reshape(operand.lines, -1)
    elements = _widened(unpack_elements(_flipped(operand, data), operand.bits)[: source.elements], operand)
    values = np.broadcast_to(elements, operand.lines)
    lines: np.ndarray = values[:, None] * pack_elements(np.ones(operand.length, np.uint8), _target_bits(operand))
    return lines
