"""Protobuf's wire format, read by protobuf; and the small models, taken by ONNX's checker and run by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import FunctionProto, ModelProto, TensorProto

from conformance.drawing.elements import external_tensor
from ort_qdq_plugin.model.encoding import OFFSET_DIGITS, bytes_field, external_entries, number_field, small_model, varint
from tests.support import stock

MODEL_VERSION = 5  # of ModelProto: int64
RAW_DATA = 9  # of TensorProto: bytes
FUNCTIONS = 25  # of ModelProto


@given(st.integers(0, 2**63 - 1))
@example(0)
@example(0x7F)
@example(0x80)
def test_numbers_are_written_as_protobuf_writes_them(value: int) -> None:
    assert number_field(MODEL_VERSION, value) == ModelProto(model_version=value).SerializeToString()
    assert number_field(MODEL_VERSION, value)[1:] == varint(value)


@given(st.binary(max_size=300))
def test_bytes_are_written_as_protobuf_writes_them(payload: bytes) -> None:
    assert bytes_field(RAW_DATA, payload) == TensorProto(raw_data=payload).SerializeToString()


def test_large_numbers_of_fields_are_two_bytes() -> None:
    assert bytes_field(FUNCTIONS, b"") == ModelProto(functions=[FunctionProto()]).SerializeToString() == b"\xca\x01\x00"


@given(location=st.text(max_size=10), offset=st.integers(0, 2**63 - 1), length=st.integers(0, 2**63 - 1))
def test_external_data(location: str, offset: int, length: int) -> None:
    wanted = external_tensor("", TensorProto.FLOAT, [], location, offset, length)
    [said] = [entry for entry in wanted.external_data if entry.key == "offset"]
    said.value = said.value.rjust(OFFSET_DIGITS, "0")
    wanted.ClearField("name")
    wanted.ClearField("data_type")
    assert TensorProto.FromString(external_entries(location, offset, length)) == wanted


@pytest.mark.parametrize("perm", [(1, 0, 2), (2, 0, 1)])
def test_a_small_model_transposes(perm: tuple[int, ...]) -> None:
    model = small_model("Transpose", data_type=TensorProto.INT32, dims=("a", "b", "c"), perm=perm)
    onnx.checker.check_model(model)
    x = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    np.testing.assert_array_equal(stock(model).run(None, {"x": x})[0], x.transpose(perm))


def test_a_small_model_without_a_node() -> None:
    model = small_model(dims=(2,))
    onnx.checker.check_model(model)
    x = np.arange(2, dtype=np.float32)
    np.testing.assert_array_equal(stock(model).run(None, {"x": x})[0], x)


def test_a_small_model_has_the_dimensions_that_are_asked_for() -> None:
    graph = ModelProto.FromString(small_model("Neg", dims=("m", 3))).graph
    for value in (*graph.input, *graph.output):
        assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["m", 3]
    assert not graph.initializer
    assert not graph.node[0].attribute


def test_a_small_model_with_a_weight_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(np.float32(2.5).tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(small_model("Mul", file="w.data"))
    onnx.checker.check_model(path)
    assert stock(str(path)).run(None, {"x": np.array([3], np.float32)})[0] == 7.5
