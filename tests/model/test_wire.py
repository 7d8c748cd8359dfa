"""The walk over a serialized model: nothing lost, nothing read that need not be, and no bytes that upset it."""

import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from conformance.drawing.canvas import graphs_of
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


def model_of(*tensors: TensorProto, nodes: Sequence[onnx.NodeProto] = ()) -> bytes:
    return bytes(helper.make_model(helper.make_graph(list(nodes), "g", [], [], list(tensors))).SerializeToString())


# Every kind of place that a tensor can be in. Those of uint8 are made large.
PLACES = """<ir_version: 10, opset_import: ["": 21]>
main () => () <uint8[1] w = {0}, uint8[1] described = {0}, float[4] external = ["location": "elsewhere"]> {
  k = Constant <value = uint8[1] k {0}> ()
  filled = ConstantOfShape <value = uint8[1] value {0}> (s)
  y = If (c) <
    then_branch = then () => () <uint8[1] in_branch = {0}> { then_out = Constant <value = uint8[1] then_out {0}> () },
    else_branch = else () => (else_out) {
      else_out = If (c) <
        then_branch = deep () => (deep_out) { deep_out = Constant <value = uint8[1] deep_out {0}> () },
        else_branch = deeper () => (i) <uint8[1] in_inner = {0}> { i = Identity (in_inner) }
      >
    }
  >
  z = test.custom.Custom (y)
}
<domain: "test.custom", opset_import: ["": 21]> Custom (a) => (b) { b = Add (a, a) }"""


@cache
def everything() -> bytes:
    model = parse_model(PLACES)
    for seed, tensor in enumerate(tensors_of(model.graph)):
        if tensor.data_type == TensorProto.UINT8:
            tensor.CopyFrom(large(tensor.name, seed))
    graph = model.graph
    graph.initializer[1].doc_string = "d" * LARGE
    graph.initializer.append(large("smaller", 8, 100))
    graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [LARGE], np.arange(LARGE).tolist()))
    graph.initializer.append(helper.make_tensor("ints", TensorProto.INT32, [LARGE], list(range(LARGE))))
    graph.initializer.append(TensorProto(data_type=TensorProto.STRING, dims=[2], string_data=[b"a" * LARGE, b"b"]))
    graph.initializer.append(TensorProto(name="empty", data_type=TensorProto.FLOAT, dims=[0], raw_data=b""))
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    graph.sparse_initializer.append(helper.make_sparse_tensor(large("values", 4), indices, [LARGE]))
    graph.node[-1].attribute.append(helper.make_attribute("tensors", [large("listed", 7)]))
    graph.node[-1].attribute.append(helper.make_attribute("floats", [1.0] * LARGE))
    model.functions[0].node.append(helper.make_node("Constant", [], ["fk"], value=large("fk", 10)))
    helper.set_model_props(model, {"key": "v" * LARGE})
    return bytes(model.SerializeToString())


def tensors_of(graph: onnx.GraphProto) -> list[TensorProto]:
    """Initializers, and values of attributes."""
    found = [tensor for inner in graphs_of(graph) for tensor in inner.initializer]
    attributes = [attribute for inner in graphs_of(graph) for node in inner.node for attribute in node.attribute]
    return [*found, *(attribute.t for attribute in attributes if attribute.HasField("t"))]


def referring(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, slice]]:
    """The tensors of a skeleton that are in the model itself, and where their bytes are."""
    for tensor in tensors_of(model.graph):
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place.get("location") == HERE:
            yield tensor, slice(int(place["offset"]), int(place["offset"]) + int(place["length"]))


def resolved(skeleton: bytes, data: bytes) -> tuple[onnx.ModelProto, set[str]]:
    """The skeleton with its references into `data` replaced by what is there, and the names of those tensors."""
    model, found = onnx.ModelProto.FromString(skeleton), set()
    for tensor, place in referring(model):
        found.add(tensor.name)
        tensor.raw_data = data[place]
        assert len(tensor.raw_data) == place.stop - place.start
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    return model, found


def check(data: bytes, source: ByteSource | None = None) -> set[str]:
    """Checks that nothing is lost; the names of the tensors that are not in the skeleton."""
    model, found = resolved(without_large_tensors(source or MemorySource(data), HERE), data)
    original = onnx.ModelProto.FromString(data)
    assert model == original
    assert model.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)
    return found


@pytest.mark.parametrize("from_file", [True, False])
def test_nothing_is_lost(tmp_path: Path, from_file: bool) -> None:
    (tmp_path / "model").write_bytes(everything())
    found = check(everything(), FileSource(str(tmp_path / "model")) if from_file else None)
    assert found == {"w", "described", "k", "value", "then_out", "in_branch", "deep_out", "in_inner"}


class _Counting(MemorySource):
    read = 0

    def read_into(self, offset: int, target: memoryview) -> None:
        self.read += len(target)
        super().read_into(offset, target)


def test_large_tensors_are_left_where_they_are_and_not_read() -> None:
    source = _Counting(model_of(*(large(f"w{i}", i, 1 << 20) for i in range(8))))
    assert len(without_large_tensors(source, HERE)) < 2000
    assert source.read < 100_000


@pytest.mark.parametrize("nbytes", [*range(LARGE_TENSOR_BYTES - 1, LARGE_TENSOR_BYTES + 2), 127, 128, 16383, 16384])
def test_around_the_limit_and_where_lengths_grow(nbytes: int) -> None:
    assert check(model_of(large("w", 0, nbytes))) == ({"w"} if nbytes >= LARGE_TENSOR_BYTES else set())


def number(field_number: int, value: int) -> bytes:
    return varint(field_number << 3) + varint(value)


def in_model(tensor: bytes) -> bytes:
    return number(1, 10) + field(7, field(5, tensor))


# Fields of TensorProto.
NAMED, RAW = field(8, b"w") + number(2, 2), field(9, b"\1" * LARGE)
DEFAULT, EXTERNAL = number(14, 0), number(14, 1)
ELSEWHERE = field(13, field(1, b"location") + field(2, b"elsewhere"))


@pytest.mark.parametrize(
    "extra",
    [
        RAW + field(9, b"\2" * LARGE),  # the last of several counts
        RAW + field(9, b""),
        RAW + ELSEWHERE + EXTERNAL,
        RAW + EXTERNAL,
        RAW + field(3, number(1, 0)),  # a segment of a tensor
        field(900, b"unknown" * LARGE) + RAW,
        varint(901 << 3 | 5) + b"1234" + RAW + varint(902 << 3 | 1) + b"12345678",
        varint(9 << 3 | 2) + b"\x80\xc0\x80\x80\x00" + b"\1" * 8192,  # a length with more digits than it needs
    ],
)
def test_odd_tensors(extra: bytes) -> None:
    check(in_model(NAMED + extra))


def test_a_graph_in_two_pieces() -> None:
    """Protobuf joins a message field that comes twice."""
    pieces = [field(7, field(5, large(name, seed).SerializeToString())) for seed, name in enumerate("ab")]
    assert check(b"".join(pieces)) == {"a", "b"}


@pytest.mark.parametrize(
    "extra",
    [
        DEFAULT + RAW,  # what onnx.load of external data and onnx.save leave
        RAW + DEFAULT,
        DEFAULT + RAW + varint(14 << 3) + b"\x80\x80\x00",
        RAW + ELSEWHERE,
        ELSEWHERE + RAW + DEFAULT,
        field(12, b"documentation") + RAW + number(1, LARGE) + field(16, field(1, b"k")),
    ],
)
def test_harmless_fields_do_not_keep_a_tensor_in_the_skeleton(extra: bytes) -> None:
    data = in_model(extra + NAMED)
    skeleton = without_large_tensors(MemorySource(data), HERE)
    assert len(skeleton) < LARGE
    model, original = resolved(skeleton, data)[0], onnx.ModelProto.FromString(data)
    for parsed in (model, original):
        # Neither means anything where the location is DEFAULT.
        parsed.graph.initializer[0].ClearField("data_location")
        del parsed.graph.initializer[0].external_data[:]
    assert model == original


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
        *(b"\x3a\x80", b"\x3a", b"\x3a\x05abc", b"\x3d\x00\x00"),
        b"\x3b\x00",  # a group
        b"\x02\x00",  # field 0
        b"\x39\x00",  # eight bytes, of which one is there
        field(7, b"\x2a\xff\xff\x7f" + b"x" * LARGE),  # a tensor longer than its graph
    ],
)
def test_broken_messages(data: bytes) -> None:
    with pytest.raises(ModelError):
        without_large_tensors(MemorySource(data), HERE)


@cache
def small_model() -> bytes:
    """So small that most mutations hit structure rather than weights."""
    model = linear(Weight(k=256, n=64))
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=large("k", 1)))
    return bytes(model.SerializeToString())


def structure(data: bytes) -> list[int]:
    """Positions whose change is likely to matter: those that are not inside large tensors."""
    inside = np.zeros(len(data), bool)
    for _, place in referring(onnx.ModelProto.FromString(without_large_tensors(MemorySource(data), HERE))):
        inside[place] = True
    return [int(at) for at in np.flatnonzero(~inside)]


STRUCTURE = structure(small_model())

edits = st.lists(st.tuples(st.sampled_from(STRUCTURE), st.integers(0, 255)), min_size=1, max_size=5)


def open_or_refuse(data: bytes) -> None:
    with suppress(ModelError, OSError, DecodeError):
        skeleton = open_skeleton(data, None)
        if skeleton is not None:
            opened = parse(skeleton)
            for tensor in external_tensors(opened.proto.graph):
                opened.locate(tensor)


@pytest.mark.slow
@settings(max_examples=2500, deadline=None)
@given(edits=edits, cut=st.none() | st.sampled_from(STRUCTURE))
@example([(STRUCTURE[0], 0)], 0)
def test_mutations_are_refused_or_read(edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(small_model())
    for position, byte in edits:
        data[position] = byte
    open_or_refuse(bytes(data[:cut]))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(data: bytes) -> None:
    open_or_refuse(data)
    open_or_refuse(field(7, data + b"x" * LARGE))


@pytest.mark.parametrize("output", [b"", b"\xff" * 9])
def test_a_constant_node_without_an_output_or_with_one_that_is_not_utf8(output: bytes) -> None:
    """Protobuf reads such a name and refuses only to show it."""
    node = helper.make_node("Constant", [], ["some-name"] if output else [], value=large("k"))
    open_or_refuse(model_of(nodes=[node]).replace(b"some-name", output))


def test_memory_stays_small_whatever_the_lengths_say() -> None:
    rng = np.random.default_rng(0)
    data = small_model()
    tracemalloc.start()
    try:
        for _ in range(300):
            broken = bytearray(data)
            at = STRUCTURE[rng.integers(len(STRUCTURE) - 8)]
            broken[at : at + 8] = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
            open_or_refuse(bytes(broken))
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()
