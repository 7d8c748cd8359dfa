"""Transposing and re-packing matrices of 2-, 4-, 8-, 16- and 32-bit elements.

NumPy transposes bytes at 0.15 GB/s; ONNX Runtime's Transpose kernel does it an order of magnitude faster. So the work is
split: NumPy exchanges the elements inside bytes (wide bit operations that stay in cache), and a helper session with a single
Transpose node moves whole bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ort_qdq_plugin.model.elements import top_bits
from ort_qdq_plugin.ort.transpose import TransposeSession

__all__ = ["Transposer", "widen_elements"]

# A panel (the columns transposed at once) should stay in a core's second-level cache together with its result.
_PANEL_BYTES = 768 << 10
_MIN_PANEL_COLUMNS = 64  # bytes: a cache line of every row

_SMALL_BYTES = 32 << 10


def widen_elements(lines: np.ndarray, count: int, bits: int, added: int) -> np.ndarray:
    """Twice the bits, 4 or 8, for the first `count` elements of each packed line [lines, n]: [lines, ceil(count*bits/4)].

    `added` is added to each. Low bits first before and after, the last byte of a line zero-padded.
    """
    words: np.ndarray = lines[:, : -(-count * bits // 8)].astype(np.uint16)  # little endian, as everything here
    for shift, mask in ((4, 0x0F0F), (2, 0x3333)):
        if shift >= bits:
            words |= words << np.uint16(shift)
            words &= np.uint16(mask)
    # Every sum fits its element: nothing is carried into the next one.
    words += np.uint16(added * (0xFFFF // ((1 << 2 * bits) - 1)))
    widened = np.ascontiguousarray(words.view(np.uint8)[:, : -(-count * bits // 4)])
    used = count * bits % 4 * 2
    if used:
        widened[:, -1] &= np.uint8((1 << used) - 1)
    return widened


class Transposer:
    """Transposes on the calling thread, with scratch of its own; one per thread, used in the process that made it."""

    def __init__(self) -> None:
        self._sessions: dict[int, TransposeSession] = {}
        self._panel = np.empty(0, np.uint8)
        self._moved = np.empty(0, np.uint8)
        self._lines = np.empty(0, np.uint8)

    def transposed(self, matrix: np.ndarray, bits: int, flip: bool) -> Iterator[tuple[int, np.ndarray]]:
        """The transpose of `matrix`, some lines at a time: (first line, uint8 [lines, bytes of a line]).

        `matrix` is uint8 [rows, columns*bits/8]; `bits` below 8 need rows in multiples of 8/bits. `flip` inverts the top bit
        of every element. Each array is overwritten by the next.
        """
        per = max(1, 8 // bits)
        element = max(1, bits // 8)
        rows, row_bytes = matrix.shape
        for left, right in _panels(rows, row_bytes, element):
            panel = self._exchanged(matrix, left, right, per, bits, flip)
            lines = self._scratch("_lines", panel.size).reshape(-1, rows * element // per)
            if panel.size <= _SMALL_BYTES:
                # Not worth the call, nor a session if there are only such.
                columns = panel.view(f"u{element}").T
                np.copyto(lines.reshape(-1).view(f"u{element}").reshape(columns.shape), columns)
            else:
                self._session(element).transpose(panel, lines)
            yield left * per // element, lines

    def _exchanged(self, matrix: np.ndarray, left: int, right: int, per: int, bits: int, flip: bool) -> np.ndarray:
        """Bytes left..right of every row, as contiguous [rows, width], so regrouped that a byte transpose completes the job.

        For each `per` successive rows, plane p of the result holds the p-th element of each of their bytes.
        """
        rows, row_bytes = matrix.shape
        word = _widest_word(left, right, row_bytes)
        source = matrix.view(word)[:, left // word().itemsize : right // word().itemsize]
        panel = self._scratch("_panel", rows * (right - left)).view(word).reshape(per, rows // per, -1)
        groups = source.reshape(rows // per, per, -1)
        moved = self._scratch("_moved", panel[0].nbytes).view(word).reshape(panel[0].shape)
        if per == 1:
            np.copyto(panel[0], source)
        elif per == 2:
            _exchange((groups[:, 0], groups[:, 1]), (panel[0], panel[1]), 4, moved)
        else:
            for low, high in ((0, 2), (1, 3)):
                _exchange((groups[:, low], groups[:, high]), (panel[low], panel[high]), 4, moved)
            for low, high in ((0, 1), (2, 3)):
                _exchange((panel[low], panel[high]), (panel[low], panel[high]), 2, moved)
        if flip:
            np.bitwise_xor(panel, _repeated(top_bits(bits), word), out=panel)
        regrouped: np.ndarray = panel.view(np.uint8).reshape(rows, right - left)
        return regrouped

    def _session(self, element_bytes: int) -> TransposeSession:
        if element_bytes not in self._sessions:
            self._sessions[element_bytes] = TransposeSession(element_bytes)
        return self._sessions[element_bytes]

    def _scratch(self, name: str, nbytes: int) -> np.ndarray:
        scratch: np.ndarray = getattr(self, name)
        if scratch.size < nbytes:
            scratch = np.empty(nbytes, np.uint8)
            setattr(self, name, scratch)
        return scratch[:nbytes]


def _panels(rows: int, row_bytes: int, element: int) -> Iterator[tuple[int, int]]:
    width = max(_PANEL_BYTES // rows, _MIN_PANEL_COLUMNS * element) // _MIN_PANEL_COLUMNS * _MIN_PANEL_COLUMNS
    for left in range(0, row_bytes, width):
        yield left, min(left + width, row_bytes)


def _widest_word(*offsets: int) -> Any:
    """The widest unsigned type that `offsets` in bytes are all multiples of."""
    for word in (np.uint64, np.uint32, np.uint16):
        if all(offset % word().itemsize == 0 for offset in offsets):
            return word
    return np.uint8


def _repeated(byte: int, word: Any) -> Any:
    return word(int.from_bytes(bytes([byte]) * word().itemsize, "little"))


def _exchange(
    pair: tuple[np.ndarray, np.ndarray], out: tuple[np.ndarray, np.ndarray], shift: int, moved: np.ndarray
) -> None:
    """Exchange, byte by byte, the upper `shift`-bit fields of the first of `pair` with the lower ones of the second.

    Of every two neighbouring fields, the first of `out` gets the lower ones of both and the second the upper ones; `out` may
    be `pair` itself. `moved` is scratch of the same shape.
    """
    (low, high), (out_low, out_high) = pair, out
    word = moved.dtype.type
    mask = _repeated({4: 0x0F, 2: 0x33}[shift], word)
    np.right_shift(low, word(shift), out=moved)
    np.bitwise_xor(moved, high, out=moved)
    np.bitwise_and(moved, mask, out=moved)
    np.bitwise_xor(high, moved, out=out_high)
    np.left_shift(moved, word(shift), out=moved)
    np.bitwise_xor(low, moved, out=out_low)
