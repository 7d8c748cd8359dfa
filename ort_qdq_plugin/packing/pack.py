"""Carrying out a layout: every source byte is read once, moved, and written where it goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.model.quantized import BFLOAT16, FLOAT16
from ort_qdq_plugin.model.tensors import ELEMENT_BITS
from ort_qdq_plugin.packing.bits import Transposer, flip_mask, pack_elements, unpack_elements
from ort_qdq_plugin.packing.layout import Conversion, Layout, Move, Order

__all__ = ["Progress", "pack"]

Progress = Callable[[int, int], None]
"""Called with (bytes moved, bytes to move) after each step, on the thread that made it."""

# All threads' reading scratch together, and the most that one thread is given of it.
_SCRATCH_BYTES = 160 << 20
_MAX_THREAD_SCRATCH_BYTES = 64 << 20

# A multiple of eight rows, so that bands start on byte borders whatever the rows do.
_MIN_BAND_LINES = 64

# Element by element, a byte each and several arrays at once.
_UNALIGNED_BYTES_PER_ELEMENT = 4


@dataclass(frozen=True)
class _Band:
    """Rows first..last of a move's source matrix, [rows, columns]; from element `start` of each target line on."""

    move: Move
    first: int
    last: int

    @property
    def columns(self) -> int:
        return self.move.lines if self.move.order is Order.TRANSPOSED else self.move.source_length

    @property
    def start(self) -> int:
        return self.first * self.move.repeat if self.move.order is Order.TRANSPOSED else 0

    @property
    def source_bytes(self) -> int:
        return ((self.last - self.first) * self.columns * self.move.bits + 7) // 8


def pack(layout: Layout, buffers: Sequence[PackedBuffer], threads: int, progress: Progress | None = None) -> None:
    """Fill `buffers`, zeroed, one for each of `layout.sizes`, on `threads` threads.

    Scratch stays below 256 MB whatever the model's size. Raises what reading and writing raise (SourceChangedError, OSError)
    and what `progress` raises; the buffers' content is then undefined. Whether the sources are still what was opened is the
    caller's to check afterwards.
    """
    share = min(_SCRATCH_BYTES // threads, _MAX_THREAD_SCRATCH_BYTES)
    bands = [band for move in layout.moves for band in _bands(move, share)]
    job = _Job(buffers, bands, progress)
    workers = min(threads, len(bands))
    if workers > 1:
        _run_parallel(job, workers)
    else:
        job.work(0)


def _run_parallel(job: _Job, workers: int) -> None:
    with ThreadPoolExecutor(workers, thread_name_prefix="ort-qdq-pack") as executor:
        futures = [executor.submit(job.work, worker) for worker in range(workers)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            job.cancelled = True
    failures = [failure for failure in (future.exception() for future in futures) if failure is not None]
    # An exception must not hold, by way of this frame, itself and so the buffers.
    del futures, job
    try:
        if failures:
            raise failures[0]
    finally:
        del failures


def _bands(move: Move, scratch_bytes: int) -> Iterator[_Band]:
    """Cut a move so that what one step reads, and unpacks, fits the scratch."""
    if move.order is Order.SPREAD:
        yield _Band(move, 0, 1)
        return
    whole = _Band(move, 0, move.source_length if move.order is Order.TRANSPOSED else move.lines)
    aligned = whole.columns * move.bits % 8 == 0
    row_bytes = whole.columns * move.bits // 8 if aligned else whole.columns * _UNALIGNED_BYTES_PER_ELEMENT
    rows = max(scratch_bytes // row_bytes, _MIN_BAND_LINES) // _MIN_BAND_LINES * _MIN_BAND_LINES
    for first in range(0, whole.last, rows):
        yield _Band(move, first, min(first + rows, whole.last))


class _Job:
    """What the threads of one pack() share: bands still to do, by buffer, the progress, and scratch for each thread."""

    def __init__(self, buffers: Sequence[PackedBuffer], bands: Sequence[_Band], progress: Progress | None) -> None:
        self._buffers = buffers
        self._waiting: list[list[_Band]] = [[] for _ in buffers]
        for band in sorted(bands, key=lambda band: band.source_bytes):
            self._waiting[band.move.segment].append(band)
        self._total = sum(band.source_bytes for band in bands)
        self._done = 0
        self._progress = progress
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self.cancelled = False

    def work(self, worker: int) -> None:
        """Do bands of buffer `worker`, then of the others, until none is left.

        Each thread starts with a buffer of its own because file systems let one thread at a time write to a file.
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
        move = band.move
        target = _Target(self._buffers[move.segment], move)
        if move.order is Order.SPREAD:
            target.put(0, 0, _spread(move))
        elif band.columns * move.bits % 8:
            self._unaligned(band, target)
        elif move.order is Order.ROWS:
            target.put(band.first, 0, _finished(band, _flipped(band, self._read(band, 1))))
        else:
            self._transpose(band, target)

    def _transpose(self, band: _Band, target: _Target) -> None:
        move = band.move
        matrix = self._read(band, max(1, 8 // move.bits)).reshape(-1, band.columns * move.bits // 8)
        # What pads the last group of rows must come out as zeros.
        matrix[band.last - band.first :] = flip_mask(move.bits) if move.flip else 0
        for first, lines in self._transposer().transposed(matrix, move.bits, move.flip):
            target.put(first, band.start, _finished(band, lines))

    def _unaligned(self, band: _Band, target: _Target) -> None:
        """Rows that do not end on byte borders: element by element."""
        move = band.move
        rows = band.last - band.first
        elements = unpack_elements(self._read(band, 1), move.bits)[: rows * band.columns].reshape(rows, band.columns)
        if move.flip:
            elements = elements ^ np.uint8(1 << (move.bits - 1))
        if move.order is Order.ROWS:
            target.put(band.first, 0, _finished(band, pack_elements(elements, move.bits)))
            return
        for first, lines in self._transposer().transposed(np.ascontiguousarray(elements), 8, False):
            target.put(first, band.start, _finished(band, pack_elements(lines, move.bits)))

    def _read(self, band: _Band, row_multiple: int) -> np.ndarray:
        """The band's bytes in this thread's scratch, with room for rows up to the next multiple."""
        rows = band.last - band.first
        room = -(-rows // row_multiple) * row_multiple * band.columns * band.move.bits
        scratch: np.ndarray | None = getattr(self._of_thread, "scratch", None)
        if scratch is None or scratch.size * 8 < room:
            scratch = self._of_thread.scratch = np.empty((room + 7) // 8, np.uint8)
        start = band.first * band.columns * band.move.bits // 8
        band.move.source.read_range(start, scratch[: band.source_bytes])
        return scratch[: (room + 7) // 8]

    def _transposer(self) -> Transposer:
        transposer: Transposer | None = getattr(self._of_thread, "transposer", None)
        if transposer is None:
            transposer = self._of_thread.transposer = Transposer()
        return transposer


class _Target:
    """The lines of one move in its buffer."""

    def __init__(self, buffer: PackedBuffer, move: Move) -> None:
        self._buffer = buffer
        self._move = move

    def put(self, first: int, start: int, lines: np.ndarray) -> None:
        """Write uint8 `lines` [count, n] from line `first` on, at element `start` of each."""
        move = self._move
        start = start * (move.bits if move.conversion is None else ELEMENT_BITS[move.conversion.target]) // 8
        offset = move.offset + first * move.row_bytes
        if lines.shape[1] == move.row_bytes:
            self._buffer.write(offset, lines)
            return
        span = len(lines) * move.row_bytes
        window = self._buffer.array[offset : offset + span].reshape(len(lines), move.row_bytes)
        window[:, start : start + lines.shape[1]] = lines
        self._buffer.trim(offset, span)


def _flipped(band: _Band, data: np.ndarray) -> np.ndarray:
    if band.move.flip:
        np.bitwise_xor(data, np.uint8(flip_mask(band.move.bits)), out=data)
    return data.reshape(band.last - band.first, -1)


def _finished(band: _Band, lines: np.ndarray) -> np.ndarray:
    """`lines` of the source, uint8 [count, n], as they go into the target: converted, each element repeated."""
    move = band.move
    if move.conversion is not None:
        lines = _converted(np.ascontiguousarray(lines), move.conversion)
    if move.repeat == 1:
        return lines
    room = move.length - band.start
    if move.bits < 8:
        elements = unpack_elements(lines, move.bits)[:, : -(-room // move.repeat)]
        return pack_elements(np.repeat(elements, move.repeat, axis=1)[:, :room], move.bits)
    width = (move.bits if move.conversion is None else ELEMENT_BITS[move.conversion.target]) // 8
    repeated = np.repeat(np.ascontiguousarray(lines).view(f"u{width}"), move.repeat, axis=1)[:, :room]
    return np.ascontiguousarray(repeated).view(np.uint8)


def _converted(data: np.ndarray, conversion: Conversion) -> np.ndarray:
    """Contiguous uint8 `data` [.., n bytes] with its floating-point elements converted."""
    if conversion.source == BFLOAT16:
        # The upper half of a float.
        values = (data.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = data.view(np.float16 if conversion.source == FLOAT16 else np.float32).astype(np.float32)
    if conversion.factor != 1.0:
        values = values * np.float32(conversion.factor)
    converted: np.ndarray = values.astype(np.float16 if conversion.target == FLOAT16 else np.float32).view(np.uint8)
    return converted


def _spread(move: Move) -> np.ndarray:
    """The lines [lines, ceil(length*bits/8)] of a move whose lines each repeat one element."""
    data = move.source.read()
    if move.bits > 8:
        if move.conversion is not None:
            data = _converted(data, move.conversion)
        values = np.broadcast_to(data.view(f"u{data.size // move.source.elements}"), move.lines)
        return np.repeat(values, move.length).view(np.uint8).reshape(move.lines, -1)
    values = np.broadcast_to(unpack_elements(data, move.bits)[: move.source.elements], move.lines)
    if move.flip:
        values = values ^ np.uint8(1 << (move.bits - 1))
    lines: np.ndarray = values[:, None] * pack_elements(np.ones(move.length, np.uint8), move.bits)
    return lines
