"""Where tensors are: bounds, types and values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ort_qdq_plugin.errors import ModelError, SourceChangedError
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.sources import ExternalFiles, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor, stored_tensor, tensor_bytes


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


@pytest.mark.parametrize("dims", [[-1], [3, -(2**63)], [-1, -1]])
def test_negative_dimensions(dims: list[int]) -> None:
    with pytest.raises(ModelError, match="negative"):
        tensor_bytes(TensorProto.FLOAT, dims)


@pytest.mark.parametrize("data_type", [TensorProto.STRING, TensorProto.UNDEFINED, 99, -1])
def test_types_without_a_size(data_type: int) -> None:
    with pytest.raises(ModelError, match="data type"):
        tensor_bytes(data_type, [1])


@pytest.mark.parametrize(
    ("entries", "nbytes"),
    [
        ({}, 1000),
        ({"offset": 0}, 1000),
        ({"offset": 4, "length": 996}, 996),
        ({"offset": 996, "length": 4}, 4),
        ({"length": 0}, 1000),
    ],
)
def test_external_data(folder: Path, entries: dict[str, int], nbytes: int) -> None:
    stored = locate(external([nbytes // 4], location="w.data", **entries), folder)
    start = entries.get("offset", 0)
    assert stored.read().tobytes() == (bytes(range(250)) * 4)[start : start + nbytes]


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 4},
        {"offset": 1000},
        {"offset": 2**64},
        {"offset": -4},
        {"offset": "0x4"},
        {"offset": " 4"},
        {"offset": "4.0"},
        {"offset": "٤"},
        {"offset": ""},
        {"offset": "9" * 5000},
        {"length": 999},
        {"length": 1004},
        {"length": -1000},
        {"length": 10**30},
    ],
)
def test_external_data_outside_the_file(folder: Path, entries: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        locate(external([250], location="w.data", **entries), folder)


def test_more_elements_than_the_file_has(folder: Path) -> None:
    for dims in ([251], [2**62, 2**62], [250, 0, 2**63 - 1]):
        tensor = external(dims, location="w.data")
        if 0 in dims:
            assert locate(tensor, folder).nbytes == 0
            continue
        with pytest.raises(ModelError):
            locate(tensor, folder)


def test_a_file_that_shrinks_raises_instead_of_ending_the_process(folder: Path) -> None:
    stored = locate(external([250], location="w.data"), folder)
    os.truncate(folder / "w.data", 100)
    with pytest.raises(SourceChangedError, match=r"w\.data"):
        stored.read()


def test_reading_beyond_a_tensor_is_refused(folder: Path) -> None:
    stored = locate(external([10], location="w.data", offset=100), folder)
    for start, nbytes in ((-1, 4), (38, 4), (0, 41)):
        with pytest.raises(ModelError):
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
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    wanted = np.array(values, np.uint16).tobytes() if data_type == TensorProto.FLOAT16 else np.array(values, dtype).tobytes()
    assert locate(tensor, folder).read().tobytes() == wanted


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
    for tensor in (
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[dim], raw_data=bytes(4 * count)),
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[dim], float_data=[0.0] * count),
    ):
        if count == dim:
            assert locate(tensor, Path("/")).nbytes == 4 * dim
        else:
            with pytest.raises(ModelError):
                locate(tensor, Path("/"))
