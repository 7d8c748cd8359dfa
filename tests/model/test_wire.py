"""The walk over a serialized model: nothing lost, nothing read that need not be, and no bytes that upset it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.messages import external_tensors
from ort_qdq_plugin.model.parsed import parse
from ort_qdq_plugin.model.skeleton import open_skeleton
from ort_qdq_plugin.model.sources import ByteSource, FileSource, MemorySource
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES, without_large_tensors
from tests.support import field, linear, varint

HERE = "the model itself"
LARGE = LARGE_TENSOR_BYTES * 2


def large(name: str, seed: int = 0, nbytes: int = LARGE) -> TensorProto:
    data = np.random.default_rng(seed).integers(0, 256, nbytes).astype(np.uint8)
    tensor: TensorProto = numpy_helper.from_array(data, name)
    return tensor


def graph(name: str, *nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    outputs = [helper.make_tensor_value_info(f"{name}_out", TensorProto.UINT8, None)]
    return helper.make_graph(list(nodes), name, [], outputs, initializer=list(tensors))


def constant(name: str, seed: int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=large(name, seed))


def everything() -> onnx.ModelProto:
    """Every kind of place that a tensor can be in."""
    branch = graph("then", constant("then_out", 1), tensors=(large("in_branch", 2),))
    nested = graph(
        "else",
        helper.make_node("If", ["c"], ["else_out"], then_branch=branch, else_branch=graph("deep", constant("deep_out", 3))),
    )
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [LARGE], np.arange(LARGE, dtype=np.float32).tolist())
    ints = helper.make_tensor("ints", TensorProto.INT32, [LARGE], list(range(LARGE)))
    strings = TensorProto(name="strings", data_type=TensorProto.STRING, dims=[2], string_data=[b"a" * LARGE, b"b"])
    empty = TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0], raw_data=b"")
    external = TensorProto(name="external", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    external.external_data.add(key="location", value="elsewhere")
    described = large("described", 9)
    described.doc_string = "d" * LARGE
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(large("values", 4), indices, [LARGE])
    nodes = [
        constant("k", 5),
        helper.make_node("ConstantOfShape", ["s"], ["filled"], value=large("value", 6)),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=nested),
        helper.make_node("Custom", ["y"], ["z"], domain="test.custom", tensors=[large("listed", 7)], floats=[1.0] * LARGE),
    ]
    tensors = (large("w", 8), large("smaller", 8, 100), typed, ints, strings, empty, external, described)
    main = graph("main", *nodes, tensors=tensors)
    main.sparse_initializer.append(sparse)
    function = helper.make_function(
        "test.custom", "Custom", ["a"], ["b"], [constant("fk", 10), helper.make_node("Add", ["a", "fk"], ["b"])], []
    )
    model: onnx.ModelProto = helper.make_model(main, functions=[function], opset_imports=[helper.make_opsetid("", 21)])
    helper.set_model_props(model, {"key": "v" * LARGE})
    return model


def tensors_of(graph_: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph_.initializer
    for node in graph_.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in [attribute.g, *attribute.graphs]:
                if inner.ByteSize():
                    yield from tensors_of(inner)


def entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def resolved(skeleton: bytes, data: bytes) -> tuple[onnx.ModelProto, set[str]]:
    """The skeleton with its references into `data` replaced by what is there, and the names of those tensors."""
    model = onnx.ModelProto()
    model.ParseFromString(skeleton)
    found = set()
    for tensor in tensors_of(model.graph):
        place = entries(tensor)
        if place.get("location") == HERE:
            found.add(tensor.name)
            tensor.raw_data = data[int(place["offset"]) : int(place["offset"]) + int(place["length"])]
            assert len(tensor.raw_data) == int(place["length"])
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    return model, found


def as_file(data: bytes, folder: Path) -> ByteSource:
    (folder / "model").write_bytes(data)
    return FileSource(str(folder / "model"))


@pytest.mark.parametrize("from_file", [True, False])
def test_nothing_is_lost(tmp_path: Path, from_file: bool) -> None:
    original = everything()
    data = bytes(original.SerializeToString())
    skeleton = without_large_tensors(as_file(data, tmp_path) if from_file else MemorySource(data), HERE)
    model, found = resolved(skeleton, data)
    assert model == original
    assert found == {"w", "described", "k", "value", "then_out", "in_branch", "deep_out"}


def test_large_tensors_are_left_where_they_are() -> None:
    model = graph("g", tensors=tuple(large(f"w{i}", i, 1 << 20) for i in range(8)))
    data = bytes(helper.make_model(model).SerializeToString())
    assert len(without_large_tensors(MemorySource(data), HERE)) < 2000


class _Counting(MemorySource):
    read = 0

    def read_into(self, offset: int, target: memoryview) -> None:
        self.read += len(target)
        super().read_into(offset, target)


def test_weights_are_not_read() -> None:
    model = graph("g", tensors=tuple(large(f"w{i}", i, 1 << 20) for i in range(8)))
    source = _Counting(bytes(helper.make_model(model).SerializeToString()))
    without_large_tensors(source, HERE)
    assert source.read < 100_000


@pytest.mark.parametrize("nbytes", [*range(LARGE_TENSOR_BYTES - 1, LARGE_TENSOR_BYTES + 2), 127, 128, 16383, 16384])
def test_around_the_limit_and_where_lengths_grow(nbytes: int) -> None:
    original = helper.make_model(graph("g", tensors=(large("w", 0, nbytes),)))
    data = bytes(original.SerializeToString())
    model, found = resolved(without_large_tensors(MemorySource(data), HERE), data)
    assert model == original
    assert found == ({"w"} if nbytes >= LARGE_TENSOR_BYTES else set())


def in_model(tensor: bytes) -> bytes:
    return varint(1 << 3) + varint(10) + field(7, field(5, tensor))


@pytest.mark.parametrize(
    "extra",
    [
        field(9, b"\1" * LARGE) + field(9, b"\2" * LARGE),  # the last of several counts
        field(9, b"\1" * LARGE) + field(9, b""),
        field(9, b"\1" * LARGE) + field(13, field(1, b"location") + field(2, b"elsewhere")) + varint(14 << 3) + varint(1),
        field(9, b"\1" * LARGE) + varint(14 << 3) + varint(1),
        field(9, b"\1" * LARGE) + field(3, varint(1 << 3) + varint(0)),  # a segment of a tensor
        field(900, b"unknown" * LARGE) + field(9, b"\1" * LARGE),
        varint(901 << 3 | 5) + b"1234" + field(9, b"\1" * LARGE) + varint(902 << 3 | 1) + b"12345678",
        varint(9 << 3 | 2) + b"\x80\xc0\x80\x80\x00" + b"\1" * 8192,  # a length with more digits than it needs
    ],
)
def test_odd_tensors(extra: bytes) -> None:
    data = in_model(field(8, b"w") + varint(2 << 3) + varint(2) + extra)
    original = onnx.ModelProto()
    original.ParseFromString(data)
    model, _ = resolved(without_large_tensors(MemorySource(data), HERE), data)
    assert model == original
    assert model.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "extra",
    [
        varint(14 << 3) + varint(0) + field(9, b"\1" * LARGE),  # what onnx.load of external data and onnx.save leave
        field(9, b"\1" * LARGE) + varint(14 << 3) + varint(0),
        varint(14 << 3) + varint(0) + field(9, b"\1" * LARGE) + varint(14 << 3) + b"\x80\x80\x00",
        field(9, b"\1" * LARGE) + field(13, field(1, b"location") + field(2, b"elsewhere")),
        field(13, field(1, b"location") + field(2, b"elsewhere")) + field(9, b"\1" * LARGE) + varint(14 << 3) + varint(0),
        field(12, b"documentation") + field(9, b"\1" * LARGE) + varint(1 << 3) + varint(LARGE) + field(16, field(1, b"k")),
    ],
)
def test_harmless_fields_do_not_keep_a_tensor_in_the_skeleton(extra: bytes) -> None:
    data = in_model(extra + field(8, b"w") + varint(2 << 3) + varint(2))
    original = onnx.ModelProto()
    original.ParseFromString(data)
    skeleton = without_large_tensors(MemorySource(data), HERE)
    assert len(skeleton) < LARGE
    model, _ = resolved(skeleton, data)
    for parsed in (model, original):
        # Neither means anything where the location is DEFAULT.
        parsed.graph.initializer[0].ClearField("data_location")
        del parsed.graph.initializer[0].external_data[:]
    assert model == original


def test_a_graph_in_two_pieces() -> None:
    """Protobuf joins a message field that comes twice."""
    data = field(7, field(5, large("a", 1).SerializeToString())) + field(7, field(5, large("b", 2).SerializeToString()))
    original = onnx.ModelProto()
    original.ParseFromString(data)
    model, found = resolved(without_large_tensors(MemorySource(data), HERE), data)
    assert model == original
    assert found == {"a", "b"}


def nested(depth: int) -> bytes:
    inner = field(5, large("w").SerializeToString())
    for _ in range(depth):
        inner = field(1, field(5, field(6, inner)))
    return field(7, inner)


def test_nesting_is_limited_like_protobuf_limits_it() -> None:
    assert without_large_tensors(MemorySource(nested(20)), HERE)
    with pytest.raises(ModelError, match="nested deeper"):
        without_large_tensors(MemorySource(nested(2000)), HERE)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a graph of 2**63 - 1 bytes
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # no number
        b"\x3a\x80",
        b"\x3a",
        b"\x3a\x05abc",
        b"\x3b\x00",  # a group
        b"\x02\x00",  # field 0
        b"\x39\x00",  # eight bytes, of which one is there
        b"\x3d\x00\x00",
        field(7, b"\x2a\xff\xff\x7f" + b"x" * LARGE),  # a tensor longer than its graph
    ],
)
def test_broken_messages(data: bytes) -> None:
    with pytest.raises(ModelError):
        without_large_tensors(MemorySource(data), HERE)


@cache
def seed_model() -> bytes:
    return bytes(everything().SerializeToString())


@cache
def small_model() -> bytes:
    """So small that most mutations hit structure rather than weights."""
    model = linear(Weight(k=256, n=64))
    model.graph.node.append(constant("k", 1))
    return bytes(model.SerializeToString())


def structure(data: bytes) -> list[int]:
    """Positions whose change is likely to matter: those that are not inside large tensors."""
    skeleton = onnx.ModelProto()
    skeleton.ParseFromString(without_large_tensors(MemorySource(data), HERE))
    inside = np.zeros(len(data), bool)
    for tensor in tensors_of(skeleton.graph):
        place = entries(tensor)
        if place.get("location") == HERE:
            inside[int(place["offset"]) : int(place["offset"]) + int(place["length"])] = True
    return [int(at) for at in np.flatnonzero(~inside)]


STRUCTURE = structure(small_model())

edits = st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 255)), min_size=1, max_size=5)


def open_or_refuse(data: bytes) -> None:
    skeleton = open_skeleton(data, None)
    if skeleton is not None:
        opened = parse(skeleton)
        for tensor in external_tensors(opened.proto.graph):
            opened.locate(tensor)


def allowed(call: Callable[[], object]) -> None:
    with suppress(ModelError, OSError, DecodeError):
        call()


@settings(max_examples=2500, deadline=None)
@given(edits=edits, cut=st.none() | st.sampled_from(STRUCTURE))
@example([(STRUCTURE[0], 0)], 0)
def test_mutations_are_refused_or_read(edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(small_model())
    for position, byte in edits:
        data[position] = byte
    allowed(lambda: open_or_refuse(bytes(data[:cut])))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(data: bytes) -> None:
    allowed(lambda: open_or_refuse(data))
    allowed(lambda: open_or_refuse(field(7, data + b"x" * LARGE)))


def test_a_constant_node_without_an_output() -> None:
    model = helper.make_model(graph("g", helper.make_node("Constant", [], [], value=large("k"))))
    allowed(lambda: open_or_refuse(model.SerializeToString()))


def test_a_constant_node_whose_name_is_not_utf8() -> None:
    """Protobuf reads such a name and refuses only to show it."""
    model = helper.make_model(graph("g", helper.make_node("Constant", [], ["some-name"], value=large("k"))))
    allowed(lambda: open_or_refuse(model.SerializeToString().replace(b"some-name", b"\xff" * 9)))


def test_memory_stays_small_whatever_the_lengths_say() -> None:
    rng = np.random.default_rng(0)
    data = small_model()
    tracemalloc.start()
    try:
        for _ in range(300):
            broken = bytearray(data)
            at = STRUCTURE[rng.integers(len(STRUCTURE) - 8)]
            broken[at : at + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
            allowed(partial(open_or_refuse, bytes(broken)))
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()
