"""Where initializers have their bytes, told without parsing the model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.places import Place, places
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES, without_large_tensors
from tests.support import field, refusing

HERE = "the-model-itself/0123456789"
TYPES = ["float32", "float16", "float64", "int8", "int64", "bool"]


def model_with(*tensors: TensorProto, nodes: Any = ()) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"]), *nodes], "g", [value], [value], list(tensors))
    return helper.make_model(graph)


def skeleton_of(model: onnx.ModelProto) -> bytes:
    return without_large_tensors(MemorySource(model.SerializeToString()), HERE)


def large(name: str = "w", dtype: str = "float32") -> TensorProto:
    return numpy_helper.from_array(np.arange(LARGE_TENSOR_BYTES).astype(dtype), name)


def elsewhere(**entries: str) -> TensorProto:
    """A tensor of 24 bytes in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "data.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.lists(st.integers(1, 90), max_size=3)), max_size=6))
def test_inline_tensors_are_found_where_they_are(drawn: list[tuple[str, list[int]]]) -> None:
    arrays = {f"t{at}": np.full(shape, at, dtype) for at, (dtype, shape) in enumerate(drawn)}
    data = model_with(*(numpy_helper.from_array(array, name) for name, array in arrays.items())).SerializeToString()
    skeleton = without_large_tensors(MemorySource(data), HERE)
    found = {place.name.decode(): place for place in places(skeleton)}
    assert list(found) == [name for name, array in arrays.items() if array.nbytes >= LARGE_TENSOR_BYTES]
    for name, place in found.items():
        array = arrays[name]
        assert data[place.offset : place.offset + place.nbytes] == array.tobytes()
        assert place.element_bits == 8 * array.itemsize
        assert place.is_aligned == (place.offset % array.itemsize == 0)
        # Where the model says so.
        assert skeleton[place.location_at :].startswith(HERE.encode())
        assert int(skeleton[place.offset_at : place.offset_at + 15]) == place.offset


@pytest.mark.parametrize(("entries", "offset"), [({}, 0), ({"offset": "128"}, 128), ({"offset": "0"}, 0)])
def test_external_tensors_are_found(entries: dict[str, str], offset: int) -> None:
    data = skeleton_of(model_with(elsewhere(**entries, length="24")))
    [place] = places(data)
    assert place == Place(b"w", "data.bin", offset, 24, 32, place.location_at, place.offset_at)
    assert data[place.location_at :].startswith(b"data.bin")
    assert bool(place.offset_at) == ("offset" in entries)


def test_elements_of_less_than_a_byte() -> None:
    tensor = elsewhere(length="5")
    tensor.data_type, tensor.dims[:] = TensorProto.INT4, [3, 3]
    [place] = places(skeleton_of(model_with(tensor)))
    assert (place.nbytes, place.is_aligned) == (5, True)


def inside(tensor: TensorProto) -> onnx.NodeProto:
    """A node with a graph that has the tensor."""
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Identity", [tensor.name], ["b"])], "body", [], [value], [tensor])
    return helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)


def sparse() -> onnx.ModelProto:
    model = model_with(large())
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return model


def trained() -> onnx.ModelProto:
    model = model_with(large())
    model.training_info.add()
    return model


OTHERS: dict[str, tuple[onnx.ModelProto, str]] = {
    "a tensor in an attribute": (model_with(nodes=[helper.make_node("Constant", [], ["w"], value=large())]), "attributes"),
    "a tensor in a subgraph": (model_with(nodes=[inside(large())]), "subgraphs"),
    "an external tensor in a subgraph": (model_with(large(), nodes=[inside(elsewhere(length="24"))]), "subgraphs"),
    "a loop's input": (model_with(large(), nodes=[helper.make_node("Loop", ["", "", "w"], ["z"])]), "loop"),
    "a scan's input": (model_with(large(), nodes=[helper.make_node("Scan", ["w"], ["z"])]), "loop"),
    "sparse initializers": (sparse(), "sparse"),
    "training information": (trained(), "training"),
    "no length": (model_with(elsewhere()), "usually"),
    "a wrong length": (model_with(elsewhere(length="23")), "differ in length"),
    "an offset that is no number": (model_with(elsewhere(offset="-1", length="24")), "no number"),
    "an offset of many digits": (model_with(elsewhere(offset="0" * 21, length="24")), "no number"),
    "another key": (model_with(elsewhere(checksum="0", length="24")), "usually"),
    "a text that looks like a reference": (model_with(large()), "attributes"),
    "a type of no size": (model_with(elsewhere(length="24")), "usually"),
}
OTHERS["a text that looks like a reference"][0].graph.doc_string = "\n\x08location"
OTHERS["a type of no size"][0].graph.initializer[0].data_type = TensorProto.STRING


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_left_to_onnx_runtime(name: str) -> None:
    model, problem = OTHERS[name]
    with refusing(problem):
        places(skeleton_of(model))


def test_two_messages_of_one_graph() -> None:
    data = skeleton_of(model_with(large()))
    with pytest.raises(ModelError, match="2 graphs"):
        places(data + field(7, b""))
    with pytest.raises(ModelError, match="0 graphs"):
        places(b"")


def test_an_entry_said_twice(tmp_path: Path) -> None:
    tensor = elsewhere(length="24")
    tensor.external_data.add(key="length", value="24")
    with refusing("twice"):
        places(skeleton_of(model_with(tensor)))


def test_a_small_tensor_that_a_loop_reads_is_no_obstacle() -> None:
    small = numpy_helper.from_array(np.ones(3, np.float32), "small")
    loop = helper.make_node("Loop", ["", "", "small"], ["z"])
    assert [place.name for place in places(skeleton_of(model_with(small, large(), nodes=[loop])))] == [b"w"]
