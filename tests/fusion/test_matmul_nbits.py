"""MatMulNBits' operands, taken for what its documentation says, against DequantizeLinear in plain NumPy."""

import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from conformance.drawing.elements import ELEMENTS
from ort_qdq_plugin.fusion.dequantize import QuantizedMatrix
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.matmul_nbits import (
    bits_that_need_zero_points,
    block_size_for,
    kernel_takes,
    kernel_type,
    operands_of,
)
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16, bits_of
from ort_qdq_plugin.model.operands import Conversion, Operands
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import SETTINGS, refused
from tests.packing.plain import elements_of, operand_lines, stored
from tests.support import Array

LEAST_PADDING = -1


def matrix_of(
    k: int = 64,
    n: int = 8,
    *,
    block: int = 32,
    k_major: bool = True,
    element: str = "uint4",
    scale: int = FLOAT,
    zero: bool = True,
    per_tensor: bool = False,
    centred: bool = False,
) -> QuantizedMatrix:
    kind = ELEMENTS[element]
    blocks = -(-k // block) if block else 1
    shape: tuple[int, ...] = (blocks, n) if k_major else (n, blocks)
    shape = shape if block else () if per_tensor else (n,)
    return QuantizedMatrix(
        weight=stored(kind.code, (k, n) if k_major else (n, k), "w"),
        scales=stored(scale, shape, "s", seed=1),
        zero_points=stored(kind.code, shape, "z", seed=2) if zero else None,
        centred=not zero and (centred or kind.signed),
        k=k,
        n=n,
        k_major=k_major,
        block=block,
    )


def elements(matrix: QuantizedMatrix, tensor: StoredTensor) -> Array:
    """The values of quantized elements, with their sign."""
    values = elements_of(tensor.read().tobytes(), matrix.bits, tensor.elements)
    return values - (values >> matrix.bits - 1 << matrix.bits) if matrix.signed else values


def dequantized(matrix: QuantizedMatrix) -> Array:
    """W[K, N], as DequantizeLinear's documentation has it."""

    def for_each(values: Array) -> Array:
        if not matrix.block:
            return np.broadcast_to(values, (matrix.k, matrix.n))
        by_block = values.reshape(-1, matrix.n) if matrix.k_major else values.reshape(matrix.n, -1).T
        return by_block.repeat(matrix.block, axis=0)[: matrix.k]

    weight = elements(matrix, matrix.weight)
    weight = weight.reshape(matrix.k, matrix.n) if matrix.k_major else weight.reshape(matrix.n, matrix.k).T
    scales = matrix.scales.read().view(np.float32)
    if matrix.zero_points is not None:
        return (weight - for_each(elements(matrix, matrix.zero_points))) * for_each(scales)
    # They are 0, or the middle of the range as unsigned elements have it.
    return (weight - (1 << matrix.bits - 1 if matrix.centred and not matrix.signed else 0)) * for_each(scales)


def decoded(operands: Operands, matrix: QuantizedMatrix, block_size: int, bits: int) -> Array:
    """W[K, N], as MatMulNBits' documentation has it."""
    blocks = -(-matrix.k // block_size)
    for name, operand in operands.items():
        assert operand.nbytes == math.prod(operand.shape) * bits_of(operand.data_type) // 8, name
        assert (operand.lines, operand.length) == (matrix.n, matrix.k if name == "B" else blocks) or operand.source is None
    assert operands["B"].shape == (matrix.n, blocks, block_size * bits // 8)
    assert operands["scales"].shape == (matrix.n * blocks,)
    scales = operand_lines(operands["scales"]).astype(np.uint32).view(np.float32)
    zero_points = np.full((matrix.n, blocks), 1 << bits - 1)
    if "zero_points" in operands:
        assert operands["zero_points"].shape == (matrix.n * -(-blocks * bits // 8),)
        has_source = operands["zero_points"].source is not None
        zero_points = operand_lines(operands["zero_points"]) if has_source else np.zeros((matrix.n, blocks), np.int64)

    def for_each(values: Array) -> Array:
        return values.repeat(block_size, axis=1)[:, : matrix.k]

    decoded: Array = ((operand_lines(operands["B"]) - for_each(zero_points)) * for_each(scales)).T
    return decoded


matrices = st.builds(
    matrix_of,
    k=st.integers(1, 150),
    n=st.integers(1, 20),
    block=st.sampled_from([0, 16, 32, 64, 128]),
    k_major=st.booleans(),
    element=st.sampled_from(["uint2", "int2", "uint4", "int4", "uint8", "int8"]),
    zero=st.booleans(),
    per_tensor=st.booleans(),
    centred=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(matrix=matrices, parts=st.sampled_from([1, 2, 4]), wider=st.booleans())
def test_operands_are_what_is_dequantized(matrix: QuantizedMatrix, parts: int, wider: bool) -> None:
    """In blocks of their own or in smaller ones, with as many bits as they have or, from 2, with 4."""
    block_size = max(matrix.block // parts, 16) if matrix.block else 32
    bits = 4 if wider and matrix.bits == 2 else matrix.bits
    operands = operands_of(matrix, bits, block_size, FLOAT)
    assert ("zero_points" in operands) == (not matrix.centred)
    np.testing.assert_array_equal(decoded(operands, matrix, block_size, bits), dequantized(matrix))


@pytest.mark.parametrize(
    ("scale", "wanted"), [(FLOAT, FLOAT), (FLOAT16, FLOAT16), (FLOAT16, FLOAT), (BFLOAT16, FLOAT), (FLOAT, FLOAT16)]
)
def test_scales_of_another_type_are_converted(scale: int, wanted: int) -> None:
    scales = operands_of(matrix_of(k=96, n=8, scale=scale), 4, 32, wanted)["scales"]
    conversion = None if scale == wanted else Conversion(scale, wanted)
    assert (scales.data_type, scales.bits, scales.conversion) == (wanted, bits_of(scale), conversion)
    assert (scales.nbytes, scales.line_bytes) == (8 * 3 * bits_of(wanted) // 8, 3 * bits_of(wanted) // 8)


@pytest.mark.parametrize(("given", "wanted"), [
    ({}, "B scales zero_points"),
    ({"k": 96}, "B scales"),  # three zero points of 4 bits in each row
    ({"k": 80}, "scales"),  # nor is the last block a whole one
    ({"element": "int4"}, "scales"), ({"k_major": True}, ""), ({"k_major": True, "n": 1}, "B scales zero_points"),
    ({"block": 0}, "B"), ({"block": 0, "n": 1, "k": 32, "per_tensor": True}, "B"),
])  # fmt: skip
def test_what_is_in_order_is_used_in_place(given: dict[str, Any], wanted: str) -> None:
    operands = operands_of(matrix_of(**{"k_major": False, **given}), 4, 32, FLOAT)
    assert {name for name, operand in operands.items() if operand.in_place is not None} == {*wanted.split()}


@pytest.mark.parametrize(("element", "bits", "level", "wanted"), [
    ("uint8", 8, 0, 32), ("uint8", 8, 3, 32), ("uint8", 8, 4, 1), ("uint4", 4, 0, 1), ("uint4", 8, 0, 32),
])  # fmt: skip
def test_what_is_read_in_every_run_is_aligned(element: str, bits: int, level: int, wanted: int) -> None:
    matrix = matrix_of(element=element, k_major=False)
    operands = operands_of(matrix, bits, 32, FLOAT, level)
    assert {name: operand.alignment for name, operand in operands.items()} == {"B": wanted, "scales": 1, "zero_points": 1}


# Types


@pytest.mark.parametrize(("product", "scale", "wanted"), [
    (FLOAT, FLOAT, (FLOAT, None)), (FLOAT, FLOAT16, (FLOAT, None)), (FLOAT, BFLOAT16, (FLOAT, None)),
    (FLOAT16, FLOAT16, (FLOAT16, None)), (FLOAT16, FLOAT, (FLOAT, FLOAT16)), (FLOAT16, BFLOAT16, (FLOAT, FLOAT16)),
    (BFLOAT16, BFLOAT16, (FLOAT, BFLOAT16)), (BFLOAT16, FLOAT, (FLOAT, BFLOAT16)),
    (TensorProto.DOUBLE, FLOAT, None), (TensorProto.INT32, FLOAT, None), (0, FLOAT, None),
])  # fmt: skip
def test_the_type_that_is_computed_in(product: int, scale: int, wanted: tuple[int, int | None] | None) -> None:
    with refused(None if wanted else Reason.PRODUCT_TYPE):
        assert kernel_type(product, matrix_of(k=64, n=8, scale=scale), 4, SETTINGS) == wanted


# Bits that are stored and fused, the accuracy level, and whether float16 products are computed in float on ARM.
@pytest.mark.parametrize(("stored", "bits", "level", "in_float"), [
    ("uint4", 4, 0, False), ("uint8", 8, 0, False), ("uint2", 2, 0, False), ("uint2", 4, 0, True), ("uint2", 4, 3, True),
    ("uint2", 4, 4, False), ("uint4", 4, 4, False),
])  # fmt: skip
def test_float16_on_arm(stored: str, bits: int, level: int, in_float: bool) -> None:
    matrix, x86 = matrix_of(k=64, n=8, element=stored, scale=FLOAT16), FusionSettings(0, level)
    arm, old = x86._replace(arm=True), x86._replace(arm=True, float16=False)
    in_float16, cast = (FLOAT16, None), (FLOAT, FLOAT16)
    assert [kernel_type(FLOAT16, matrix, bits, settings) for settings in (x86, old)] == [in_float16, cast]
    assert kernel_type(FLOAT16, matrix, bits, arm) == (cast if in_float else in_float16)


@pytest.mark.parametrize(("arm", "level", "wanted"), [(False, 4, 0), (True, 0, 0), (True, 4, 4)])
def test_zero_points_that_choose_a_kernel(arm: bool, level: int, wanted: int) -> None:
    assert bits_that_need_zero_points(FusionSettings(0, level, arm=arm)) == wanted


# Block sizes


@pytest.mark.parametrize(("version", "large"), [("1.31.2", False), ("1.32.0", True), ("1.9.0", False), ("2.0.0", True)])
def test_blocks_that_the_kernel_takes(version: str, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger ones since a version, unless they are of 2 bits."""
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert {block for block in (0, 1, 8, 16, 24, 32, 48, 256) if kernel_takes(block, 4)} == {16, 32, 256}
    assert [kernel_takes(256, bits) for bits in (2, 4, 8)] == [True] * 3
    assert [kernel_takes(512, bits) for bits in (2, 4, 8)] == [False, large, large]
    assert kernel_takes(1 << 20, 8) == large


@pytest.mark.parametrize(("block", "element", "wanted"), [
    (16, "uint4", 16), (256, "uint2", 256), (48, "uint4", 16), (96, "uint4", 32), (512, "uint2", 256), (768, "uint2", 256),
    (16 * 15, "uint4", 16), (16 * 3, "uint2", 16), (8, "uint4", None), (24, "uint4", None), (100, "uint4", None),
])  # fmt: skip
def test_blocks_that_are_cut_into_smaller_ones(block: int, element: str, wanted: int | None) -> None:
    with refused(None if wanted else Reason.BLOCK_SIZE):
        assert block_size_for(matrix_of(k=1024, n=2, block=block, element=element), 32, ELEMENTS[element].bits) == wanted


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scale", [FLOAT, FLOAT16])
@pytest.mark.parametrize(("element", "bits", "growth"), [("uint2", 2, 2), ("uint4", 4, 2), ("uint8", 8, 2), ("uint2", 4, 3)])
@pytest.mark.parametrize("times", [3, 5, 7, 11, 31, 63])
def test_operands_may_grow_to_twice_their_bytes(
    times: int, element: str, bits: int, growth: int, scale: int, zero: bool
) -> None:
    """Against the bytes of long rows of blocks of 16, and of the stored ones. To three times where they get more bits."""
    block = 16 * times
    matrix = matrix_of(k=block * 64, n=1, block=block, element=element, scale=scale, zero=zero)

    def all_bits(bits: int, block_size: int) -> int:
        return matrix.k * bits + matrix.k // block_size * (bits_of(scale) + (bits if zero else 0))

    with refused(Reason.BLOCK_SIZE if all_bits(bits, 16) > growth * all_bits(matrix.bits, block) else None):
        assert block_size_for(matrix, 32, bits) == 16


@pytest.mark.parametrize(("wanted", "k", "size"), [
    (0, 100, 32), (64, 100, 64), (16, 1000, 16), (LEAST_PADDING, 8, 16), (LEAST_PADDING, 16, 16), (LEAST_PADDING, 48, 16),
    (LEAST_PADDING, 64, 64), (LEAST_PADDING, 192, 64), (LEAST_PADDING, 4096, 256),
    (LEAST_PADDING, 100, 16),  # 12 more with 16, 28 with 32, 28 with 64
    (LEAST_PADDING, 255, 128),  # 1 more with 16, 32, 64 and 128: the largest
])  # fmt: skip
def test_the_block_size_for_a_weight_without_blocks(wanted: int, k: int, size: int) -> None:
    assert block_size_for(matrix_of(k=k, block=0), wanted, 4) == size
