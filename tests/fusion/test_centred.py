"""Zero points that need not be given."""

from itertools import count
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from conformance.drawing.elements import ELEMENTS
from ort_qdq_plugin.fusion import centred as centred_module
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from tests.packing.plain import raw_bytes

WEIGHTS = ["uint2", "int2", "uint4", "int4", "uint8", "int8"]


def zero_points(values: Any, element: str, dirty: bool = False, padding: int = 0) -> StoredTensor:
    """Zero points behind `padding` other bytes."""
    array, kind = np.asarray(values), ELEMENTS[element]
    raw = raw_bytes(array, kind.bits, dirty)
    return StoredTensor("z", kind.code, array.shape, MemorySource(b"\x5a" * padding + raw), padding, len(raw))


@settings(max_examples=200, deadline=None)
@given(
    element=st.sampled_from(WEIGHTS),
    count=st.integers(1, 70),
    other=st.one_of(st.none(), st.tuples(st.integers(0, 69), st.integers(0, 255))),
    dirty=st.booleans(),
    head=st.sampled_from([1, 3, 4096]),
)
def test_centred_zero_points_are_all_the_middle(
    element: str, count: int, other: tuple[int, int] | None, dirty: bool, head: int
) -> None:
    kind = ELEMENTS[element]
    values = np.full(count, kind.default_zero)
    if other is not None:
        values[other[0] % count] = kind.low + other[1] % (1 << kind.bits)
    wanted = bool((values == kind.default_zero).all())
    with mock.patch.object(centred_module, "_HEAD_BYTES", head), mock.patch.object(centred_module, "_CHUNK_BYTES", 5):
        assert Centred()(kind.code, zero_points(values, element, dirty, padding=3)) == wanted
    assert Centred()(kind.code, None) == kind.signed


def test_elements_that_need_their_zero_points() -> None:
    centred = Centred(needed_bits=4)
    given = {element: zero_points([ELEMENTS[element].default_zero] * 8, element) for element in ("uint4", "int4", "uint8")}
    assert [centred(ELEMENTS[element].code, points) for element, points in given.items()] == [False, False, True]
    assert centred(ELEMENTS["int4"].code, None)


def test_zero_points_are_read_once() -> None:
    reads: list[int] = []

    class Counting(MemorySource):
        def read_into(self, offset: int, target: memoryview) -> None:
            reads.append(offset)
            super().read_into(offset, target)

    source, centred, names = Counting(bytes([0x88] * 8)), Centred(), map(str, count())

    def is_centred(data_type: int, *shape: int) -> bool:
        return centred(data_type, StoredTensor(next(names), data_type, shape, source, 0, 8))

    assert is_centred(TensorProto.UINT4, 16)
    seen = len(reads)
    assert is_centred(TensorProto.UINT4, 16)
    assert is_centred(TensorProto.UINT4, 4, 4)
    assert len(reads) == seen > 0
    # The same bytes are other numbers in another type.
    assert not is_centred(TensorProto.UINT8, 8)
    assert not is_centred(TensorProto.INT4, 16)


def test_at_most_a_number_of_bytes_is_read() -> None:
    with mock.patch.object(centred_module, "_MAX_READ_BYTES", 20):
        centred = Centred()
        # The last byte of each is compared apart, and not counted.
        answers = [
            centred(TensorProto.UINT8, StoredTensor(str(at), TensorProto.UINT8, (11,), MemorySource(data), 0, 11))
            for at, data in enumerate([b"\x80" * 11, b"\x80" * 11 + b"other", b"\x80" * 11 + b"third"])
        ]
    assert answers == [True, True, False]
