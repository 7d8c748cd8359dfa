"""Elements of stored tensors as NumPy arrays, one in each place."""

from __future__ import annotations

import numpy as np

from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = ["elements_of", "numpy_type", "pack_elements", "unpack_elements"]


def numpy_type(data_type: int) -> np.dtype:
    """NumPy's type for elements of this type: of 8 bits for smaller ones, unsigned integers where it has none."""
    element = ELEMENTS[data_type]
    unnamed = "int8" if element.weight == "signed" else f"uint{max(8, element.bits)}"
    return np.dtype(element.numpy or unnamed)


def elements_of(tensor: StoredTensor, first: int, count: int) -> np.ndarray:
    """`count` elements of a tensor from `first` on, as they are stored: [count] in `numpy_type`.

    Raises:
        SourceChangedError, SourceUnreadableError, OSError: They cannot be read.
    """
    element = ELEMENTS[tensor.data_type]
    at = first * element.bits // 8
    data = np.empty(((first + count) * element.bits + 7) // 8 - at, np.uint8)
    tensor.read_range(at, data)
    if element.bits >= 8:
        return data.view(numpy_type(tensor.data_type))
    skipped = first - at * 8 // element.bits
    values = unpack_elements(data, element.bits)[skipped : skipped + count]
    if element.weight != "signed":
        return values
    # The shift to the left puts the sign bit where that of a byte is, and the one to the right repeats it.
    unused = 8 - element.bits
    return (values << np.uint8(unused)).view(np.int8) >> np.int8(unused)


def unpack_elements(data: np.ndarray, bits: int) -> np.ndarray:
    """One uint8 per element from packed uint8 `data` [..., n] -> [..., n*8/bits], low bits first."""
    if bits == 8:
        return data
    # Each byte in the lowest of as many as it has elements, which are then moved apart: half the distance at each step.
    words = data.astype(f"<u{8 // bits}", order="C")
    word = words.dtype.type
    for shift, mask in ((12, 0x000F000F), (6, 0x03030303)) if bits == 2 else ((4, 0x0F0F),):
        words |= words << word(shift)
        words &= word(mask)
    elements: np.ndarray = words.view(np.uint8)
    return elements


def pack_elements(elements: np.ndarray, bits: int) -> np.ndarray:
    """Packed bytes [..., ceil(n*bits/8)] from one uint8 per element [..., n], low bits first, the last byte zero-padded.

    Bits above those of an element do not matter.
    """
    if bits == 8:
        return np.ascontiguousarray(elements)
    per, mask = 8 // bits, (1 << bits) - 1
    short = -elements.shape[-1] % per
    if short:
        elements = np.concatenate([elements, np.zeros((*elements.shape[:-1], short), np.uint8)], axis=-1)
    # The elements of a byte as one little-endian word.
    words = np.ascontiguousarray(elements).view(f"<u{per}")
    word = words.dtype.type
    packed = words & word(mask)
    for at in range(1, per):
        packed |= words >> word(at * (8 - bits)) & word(mask << at * bits)
    return np.asarray(packed.astype(np.uint8, order="C"))
