"""Models that are serialized in ways that parsers take and writers do not use."""

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto

from conformance.drawing.weight import Weight
from conformance.fuzz.judge import Judge
from ort_qdq_plugin import ModelError
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES, without_large_tensors
from tests.support import field, linear, raised
from tests.withstands.hostile import with_graph


def constant(*tensors: bytes) -> bytes:
    """A model with a Constant node whose attribute has its tensor in several pieces."""
    attribute = field(1, b"value") + b"".join(field(5, tensor) for tensor in tensors) + b"\xa0\x01\x04"
    return with_graph(field(1, field(2, b"c") + field(4, b"Constant") + field(5, attribute)))


def piece(*, fill: int, nbytes: int = 2 * LARGE_TENSOR_BYTES, **fields: Any) -> bytes:
    return bytes(TensorProto(data_type=TensorProto.UINT8, raw_data=bytes([fill]) * nbytes, **fields).SerializeToString())


TYPED = TensorProto(data_type=TensorProto.UINT8, int32_data=[3] * 5000)

UNUSUAL: dict[str, Callable[[], bytes]] = {
    "graph-twice": lambda: with_graph(b"") + field(7, linear(Weight(), "other").graph.SerializeToString()),
    "tensor-twice": lambda: constant(piece(fill=1, dims=[2 * LARGE_TENSOR_BYTES]), piece(fill=2)),
    "tensor-twice-second-small": lambda: constant(piece(fill=1), piece(fill=2, nbytes=100, dims=[100])),
    "tensor-twice-first-small": lambda: constant(piece(fill=1, nbytes=100), piece(fill=2, dims=[2 * LARGE_TENSOR_BYTES])),
    "tensor-twice-first-external": lambda: constant(
        TensorProto(data_location=TensorProto.EXTERNAL).SerializeToString(), piece(fill=2, dims=[2 * LARGE_TENSOR_BYTES])
    ),
    "raw-data-twice": lambda: constant(piece(fill=1, dims=[100]) + field(9, b"x" * 100)),
    "raw-data-and-typed-data": lambda: constant(piece(fill=1) + TYPED.SerializeToString()),
    "unknown-fields": lambda: constant(piece(fill=1) + field(1000, b"unknown" * 1000) + b"\xa0\x1f\x05\xa1\x1f" + bytes(8)),
    "group": lambda: constant(piece(fill=1)) + b"\xa3\x1f\xa4\x1f",
    "padded-length": lambda: padded(constant(piece(fill=1)), 3),
    "length-padded-too-much": lambda: padded(constant(piece(fill=1)), 7),
    "length-of-64-bits": lambda: b"\x3a" + b"\xff" * 9 + b"\x01" + constant(piece(fill=1)),
    "number-of-10-bytes": lambda: b"\x08" + b"\xff" * 9 + b"\x7f" + constant(piece(fill=1)),
    "data-type-as-text": lambda: constant(piece(fill=1) + field(2, b"uint8")),
}


def padded(model: bytes, count: int) -> bytes:
    """The model, the length of its graph with so many bytes more than it needs."""
    start = model.index(b"\x3a")
    end = start + 1
    while model[end] & 0x80:
        end += 1
    return model[:end] + bytes([model[end] | 0x80]) + b"\x80" * (count - 1) + b"\0" + model[end + 1 :]


HERE = "here"


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_walk_sees_what_the_parser_sees(name: str) -> None:
    data = UNUSUAL[name]()
    original, walked = onnx.ModelProto(), onnx.ModelProto()
    unreadable = raised(lambda: original.ParseFromString(data))
    refused = raised(lambda: walked.ParseFromString(without_large_tensors(MemorySource(data), HERE)))
    if refused is not None:
        assert issubclass(refused[0], (ModelError, DecodeError) if unreadable else ModelError)  # left to stock ONNX Runtime
        return
    assert not unreadable
    for tensor in (*walked.graph.initializer, *(attr.t for node in walked.graph.node for attr in node.attribute)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("location") == HERE:
            start = int(entries["offset"])
            tensor.raw_data = data[start : start + int(entries["length"])]
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    assert walked == original


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_models_are_loaded_as_stock_loads_them(judge: Judge, name: str) -> None:
    verdict = judge.verdict(UNUSUAL[name]())
    assert not verdict.failed, f"{verdict.value}\n{judge.details}"
