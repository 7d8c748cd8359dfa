"""Weights that are dequantized once: every value as ONNX Runtime's own DequantizeLinear gives it, to the last bit."""

import math
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conformance.drawing.elements import ELEMENTS, FLOATS, raw_float, raw_quantized, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, scale_shape_of
from conformance.sessions import quiet_options
from ort_qdq_plugin.memory.buffer import make_buffers
from ort_qdq_plugin.model.operands import Dequantization, Operand, dequantized
from ort_qdq_plugin.model.sources import ExternalFiles, FileSource, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor, stored_tensor
from ort_qdq_plugin.packing import pack as pack_module
from ort_qdq_plugin.packing.dequantize import pieces
from ort_qdq_plugin.packing.layout import plan_layout
from ort_qdq_plugin.packing.pack import pack
from tests.support import CPU, Array

# Beyond the range of float16, subnormal in each type, and what is no number.
ODD_SCALES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e-8, 1e-6, 700.0, 1e5, 3e38, -1.0)
TAKEN = [name for name in ELEMENTS if name != "uint32"]


class Drawn(NamedTuple):
    """A DequantizeLinear of constants."""

    element: str
    shape: tuple[int, ...]
    axis: int
    block: int
    scale: str = "float"
    result: str = "float"
    zero: bool = True
    odd: bool = False
    seed: int = 0

    def tensors(self) -> list[TensorProto]:
        kind, rng = ELEMENTS[self.element], np.random.default_rng(self.seed)
        scale_shape = scale_shape_of(self.shape, self.axis, self.block)
        scales = rng.uniform(-0.1, 0.1, scale_shape).astype(np.float32)
        if self.odd:
            scales = np.where(rng.random(scale_shape) < 0.5, rng.choice(ODD_SCALES, scale_shape), scales).astype(np.float32)
        with np.errstate(over="ignore"):
            made = [raw_tensor("s", FLOATS[self.scale], scale_shape, raw_float(scales, self.scale))]
        names = [("w", self.shape), ("z", scale_shape)] if self.zero else [("w", self.shape)]
        for name, shape in names:
            # ONNX Runtime wants zero points of 32 bits to be 0.
            low, high = (0, 1) if name == "z" and kind.bits == 32 else (kind.low, kind.low + (1 << kind.bits))
            values = rng.integers(low, high, tuple(shape))
            made.insert(
                len(made) if name == "z" else 0, raw_tensor(name, kind.code, shape, raw_quantized(values, kind.bits))
            )
        return made

    def expected(self) -> Array:
        """What ONNX Runtime gives."""
        tensors = self.tensors()
        attributes: dict[str, Any] = {"axis": self.axis} if self.block != PER_TENSOR else {}
        attributes |= {"block_size": self.block} if self.block > 0 else {}
        attributes |= {"output_dtype": FLOATS[self.result]} if self.result != self.scale else {}
        node = helper.make_node("DequantizeLinear", [tensor.name for tensor in tensors], ["y"], **attributes)
        output = helper.make_tensor_value_info("y", FLOATS[self.result], self.shape)
        graph = helper.make_graph([node], "g", [], [output], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
        options = quiet_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        (result,) = ort.InferenceSession(model.SerializeToString(), options, CPU).run(None, {})
        values: Array = result
        return values

    def operand(self) -> Operand:
        weight, scales, *zero = map(located, self.tensors())
        zero_points = zero[0] if zero and ELEMENTS[self.element].bits < 32 else None
        size, inner = (1, weight.elements) if self.block == PER_TENSOR else self.along()
        how = Dequantization(size, inner, max(self.block, 0), scales, zero_points)
        return dequantized(weight, FLOATS[self.result], how)

    def along(self) -> tuple[int, int]:
        return self.shape[self.axis], math.prod(self.shape[self.axis + 1 :])


def located(tensor: TensorProto) -> StoredTensor:
    return stored_tensor(tensor, ExternalFiles.none(), MemorySource(b""), "")


def bits(values: Array) -> Array:
    return values.reshape(-1).view(f"u{values.itemsize}")


def packed(operand: Operand, at_once: int, threads: int = 1) -> Array:
    """The values as they are packed, so many elements at once."""
    layout = plan_layout([[operand]])
    buffers = make_buffers(layout.sizes, "memory", None)
    with mock.patch.multiple(pack_module, _DEQUANTIZED_ELEMENTS=at_once, _BYTES_PER_THREAD=1):
        pack(layout, buffers, threads)
    nbytes = operand.nbytes
    name = "float32" if operand.data_type == TensorProto.FLOAT else "float16"
    return np.array(buffers[0].array[:nbytes]).view(name).reshape(operand.shape)


@st.composite
def drawings(draw: st.DrawFn) -> Drawn:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    axis = draw(st.integers(0, len(shape) - 1))
    # ONNX Runtime takes no single block of a vector.
    blocks = [PER_CHANNEL, PER_TENSOR, *(size for size in (1, 2, 3, 16) if len(shape) > 1 or size < shape[0])]
    block = draw(st.sampled_from(blocks))
    scale, result = (draw(st.sampled_from(["float", "float16"])) for _ in range(2))
    zero, odd = draw(st.booleans()), draw(st.booleans())
    return Drawn(draw(st.sampled_from(TAKEN)), shape, axis, block, scale, result, zero, odd, draw(st.integers(0, 99)))


@settings(max_examples=300, deadline=None)
@given(drawn=drawings(), at_once=st.sampled_from([1, 2, 5, 7, 30, 1 << 17]), threads=st.sampled_from([1, 3]))
@example(Drawn("int8", (6, 3, 3, 3), 0, PER_CHANNEL), 30, 1)
@example(Drawn("int8", (6, 4, 3), 1, PER_CHANNEL, zero=False), 5, 1)
@example(Drawn("uint4", (3, 5, 7), 1, 2, odd=True), 7, 1)
@example(Drawn("int4", (3, 5, 7), 2, 3, "float16", "float"), 2, 1)
@example(Drawn("int2", (7, 9), 0, 16, "float", "float16", odd=True), 5, 1)
@example(Drawn("int32", (9,), 0, PER_CHANNEL, "float16", "float16"), 1, 1)
def test_every_value_is_as_onnx_runtime_gives_it(drawn: Drawn, at_once: int, threads: int) -> None:
    expected = drawn.expected()
    values = packed(drawn.operand(), at_once, threads)
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(bits(values), bits(expected))


@pytest.mark.parametrize("element", TAKEN)
@pytest.mark.parametrize(("scale", "result"), [("float", "float"), ("float16", "float16"), ("float", "float16")])
def test_every_integer(element: str, scale: str, result: str) -> None:
    """Many values of each type, by ordinary and by odd scales."""
    drawn = Drawn(element, (64, 300), 0, PER_CHANNEL, scale, result, odd=True, seed=3)
    np.testing.assert_array_equal(bits(packed(drawn.operand(), 1000)), bits(drawn.expected()))


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    most=st.integers(1, 300),
)
def test_pieces_cover_all_once_and_are_boxes(shape: tuple[int, int, int], most: int) -> None:
    operand = Drawn("int8", shape, 1, PER_CHANNEL).operand()
    _, size, inner = shape
    end = 0
    for first, last in pieces(operand, most):
        assert first == end < last <= first + most
        end = last
        count = last - first
        is_whole = first % (size * inner) == 0 == count % (size * inner)
        in_one = first // (size * inner) == (last - 1) // (size * inner)
        is_rows = in_one and first % inner == 0 == count % inner
        assert is_whole or is_rows or first // inner == (last - 1) // inner
    assert end == operand.lines


def test_of_what_is_read_from_a_file_no_byte_is_read_twice(tmp_path: Path) -> None:
    """But for bytes that two pieces share."""
    drawn = Drawn("int8", (1000, 64), 0, PER_CHANNEL)
    operand = drawn.operand()
    assert operand.source is not None
    (tmp_path / "w").write_bytes(operand.source.read().tobytes())
    reads: list[tuple[int, int]] = []
    source = FileSource(str(tmp_path / "w"))
    plain = source.read_into

    def noted(offset: int, target: Any) -> None:
        reads.append((offset, len(target)))
        plain(offset, target)

    with mock.patch.object(FileSource, "read_into", side_effect=noted):
        values = packed(operand._replace(source=operand.source._replace(source=source)), 6400)
    source.close()
    assert sorted(reads) == [(at, 6400) for at in range(0, 64000, 6400)]
    np.testing.assert_array_equal(bits(values), bits(drawn.expected()))
