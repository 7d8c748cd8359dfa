"""Where tensors are: bounds, types and values."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.sources import ExternalFiles, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor, stored_tensor, tensor_bytes
from tests.support import refusing


def external(dims: list[int], **entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def locate(tensor: TensorProto, folder: Path) -> StoredTensor:
    return stored_tensor(tensor, ExternalFiles.beside(str(folder / "m.onnx")), MemorySource(b""), "inline")


@given(dims=st.lists(st.integers(0, 2**63 - 1), max_size=5))
def test_sizes_do_not_overflow(dims: list[int]) -> None:
    count = 1
    for dim in dims:
        count *= dim
    assert tensor_bytes(TensorProto.FLOAT, dims) == 4 * count
    assert tensor_bytes(TensorProto.UINT4, dims) == -(-count // 2)


@pytest.mark.parametrize(("data_type", "dims", "problem"), [
    *((TensorProto.FLOAT, dims, "negative") for dims in ([-1], [3, -(2**63)], [-1, -1])),
    *((data_type, [1], "data type") for data_type in (TensorProto.STRING, TensorProto.UNDEFINED, 99, -1)),
])  # fmt: skip
def test_types_and_shapes_without_a_size(data_type: int, dims: list[int], problem: str) -> None:
    with refusing(problem):
        tensor_bytes(data_type, dims)


@pytest.mark.parametrize(
    "entries", [{}, {"offset": 0}, {"offset": 4, "length": 996}, {"offset": 996, "length": 4}, {"length": 0}]
)
def test_external_data(folder: Path, entries: dict[str, int]) -> None:
    nbytes, start = entries.get("length") or 1000, entries.get("offset", 0)
    stored = locate(external([nbytes // 4], location="w.data", **entries), folder)
    assert stored.read().tobytes() == (bytes(range(250)) * 4)[start : start + nbytes]


@pytest.mark.parametrize("entry", [
    *(("offset", offset) for offset in (4, 1000, 2**64, -4, "0x4", " 4", "4.0", "\u0664", "", "9" * 5000)),
    *(("length", length) for length in (999, 1004, -1000, 10**30)),
])  # fmt: skip
def test_external_data_outside_the_file(folder: Path, entry: tuple[str, object]) -> None:
    with refusing("w: "):
        locate(external([250], location="w.data", **dict([entry])), folder)


@pytest.mark.parametrize("dims", [[251], [2**62, 2**62], [250, 0, 2**63 - 1]])
def test_more_elements_than_the_file_has(folder: Path, dims: list[int]) -> None:
    with refusing(None if 0 in dims else "w: "):
        assert locate(external(dims, location="w.data"), folder).nbytes == 0


def test_a_file_that_shrinks_raises_instead_of_ending_the_process(folder: Path) -> None:
    stored = locate(external([250], location="w.data"), folder)
    os.truncate(folder / "w.data", 100)
    with pytest.raises(SourceChangedError, match=r"w\.data"):
        stored.read()


def test_reading_beyond_a_tensor_is_refused(folder: Path) -> None:
    stored = locate(external([10], location="w.data", offset=100), folder)
    for start, nbytes in ((-1, 4), (38, 4), (0, 41)):
        with refusing("w: "):
            stored.read_range(start, np.empty(nbytes, np.uint8))


RAW: list[tuple[int, str, Any]] = [
    (TensorProto.FLOAT, "float_data", [1.5, -2.25, 3e30]),
    (TensorProto.FLOAT16, "int32_data", [0x3C00, 0xBC00, 0x7BFF]),
    (TensorProto.INT8, "int32_data", [-128, 127, -1]),
    (TensorProto.UINT8, "int32_data", [0, 255, 128]),
]


@pytest.mark.parametrize(("data_type", "where", "values"), RAW)
def test_typed_data_is_what_raw_data_would_be(data_type: int, where: str, values: list[Any], folder: Path) -> None:
    tensor = TensorProto(name="w", data_type=data_type, dims=[3])
    getattr(tensor, where).extend(values)
    # Those of float16 are given by their bits.
    dtype = np.uint16 if data_type == TensorProto.FLOAT16 else helper.tensor_dtype_to_np_dtype(data_type)
    assert locate(tensor, folder).read().tobytes() == np.array(values, dtype).tobytes()


@pytest.mark.parametrize("data_type", [TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_typed_data_below_a_byte(data_type: int, count: int, folder: Path) -> None:
    values = np.random.default_rng(count).integers(0, 2, count).tolist()
    typed = helper.make_tensor("w", data_type, [count], values)
    assert typed.int32_data
    bits = ELEMENTS[data_type].bits
    whole = sum(value << bits * at for at, value in enumerate(values))
    assert locate(typed, folder).read().tobytes() == whole.to_bytes(-(-count * bits // 8), "little")


@settings(max_examples=50)
@given(count=st.integers(0, 20), dim=st.integers(0, 20))
def test_stored_bytes_must_fit_the_shape(count: int, dim: int) -> None:
    for values in ({"raw_data": bytes(4 * count)}, {"float_data": [0.0] * count}):
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[dim], **values)
        with refusing(None if count == dim else "w: "):
            assert locate(tensor, Path("/")).nbytes == 4 * dim
