"""Which form a weight gets: whatever the rules say, one that MatMulNBits takes and that stays within the memory."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import Options, inspect
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.choice import form_of
from ort_qdq_plugin.fusion.kind import FusionSettings
from ort_qdq_plugin.fusion.matmul_nbits import kernel_takes, operands_of
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16
from ort_qdq_plugin.model.operands import packed_bytes
from ort_qdq_plugin.report.weights import Reason
from tests.claims.pages import rows_below
from tests.fusion.support import refused
from tests.fusion.test_matmul_nbits import matrix_of
from tests.support import linear

LEVELS = (0, 4)
DEFAULT = FusionSettings(block_size=0, accuracy_level=4)


def form(level: int, wanted: int = 0, product: int = FLOAT, **given: Any) -> tuple[int, int]:
    """Bits and block size of the fused node of a weight."""
    _, *found = form_of(matrix_of(**{"k": 1024, "n": 8, **given}), product, FusionSettings(wanted, level))
    bits, block_size = found
    return bits, block_size


@pytest.mark.parametrize("element", ["uint2", "int2"])
@pytest.mark.parametrize("k_major", [True, False])
@pytest.mark.parametrize(("level", "given", "wanted"), [
    *((level, {"block": block}, (4, block)) for level in (0, 3) for block in (16, 32, 64, 128, 256, 512)),
    (4, {"block": 16}, (4, 16)), (4, {"block": 32}, (4, 32)), (4, {"block": 64}, (2, 64)), (4, {"block": 128}, (2, 128)),
    (4, {"block": 256}, (4, 256)), (4, {"block": 512}, (4, 512)), (4, {"block": 768, "k": 1536}, (4, 256)),
    (0, {"block": 0}, (4, 32)), (4, {"block": 0}, (4, 32)), (4, {"block": 48, "k": 96}, (4, 16)),
    # Four blocks at a time, of 128.
    *((4, {"block": 128, "k": 128 * blocks}, (4, 128)) for blocks in (2, 3, 5, 6, 7, 9)),
    *((4, {"block": 128, "k": 128 * blocks}, (2, 128)) for blocks in (4, 8, 10, 11, 12, 13)),
    # Weights of 6 million elements come from memory in every run.
    *((4, {"block": block, "k": 2048, "n": 3072}, (2, 128)) for block in (256, 512)),
    (4, {"block": 256, "k": 2048, "n": 3071}, (4, 256)), (4, {"block": 256, "k": 768, "n": 9000}, (4, 256)),
    (4, {"block": 0, "k": 2048, "n": 3072}, (4, 32)),
    # One block for all of K.
    (4, {"block": 256, "k": 72}, (4, 128)), (4, {"block": 512, "k": 300}, (4, 512)), (0, {"block": 512, "k": 300}, (4, 512)),
    (4, {"block": 64, "k": 48}, (2, 64)), (4, {"block": 128, "k": 100}, (4, 128)),
])  # fmt: skip
def test_weights_of_2_bits(level: int, given: dict[str, Any], wanted: tuple[int, int], element: str, k_major: bool) -> None:
    assert form(level, element=element, k_major=k_major, **given) == wanted


@pytest.mark.parametrize(
    ("asked", "wanted"), [(16, (4, 16)), (64, (2, 64)), (128, (2, 128)), (256, (4, 256)), (-1, (4, 256))]
)
def test_blocks_that_are_asked_for_are_given(asked: int, wanted: tuple[int, int]) -> None:
    for n in (8, 4096):
        assert form(4, asked, element="uint2", block=0, n=n) == wanted


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("block", [0, 16, 32, 64, 128, 256, 512])
def test_weights_of_4_bits_stay_as_they_are(level: int, block: int) -> None:
    for k_major in (True, False):
        assert form(level, block=block, k_major=k_major, n=1024) == (4, block or 32)


@pytest.mark.parametrize("block", [0, 16, 32, 64, 128, 256, 512])
def test_weights_of_8_bits_stay_as_they_are_where_activations_are_rounded(block: int) -> None:
    for k_major in (True, False):
        assert form(4, block=block, element="uint8", k_major=k_major, n=1024) == (8, block or 32)


@pytest.mark.parametrize("level", [0, 1, 3])
@pytest.mark.parametrize(("given", "wanted"), [
    *(({"block": block, "k_major": True}, (8, block)) for block in (16, 32, 64, 256, 512)),
    ({"block": 128, "n": 1024}, (8, 64)), ({"block": 128, "n": 1023}, (8, 128)), ({"block": 0, "wanted": 128}, (8, 128)),
    ({"block": 128, "n": 1024, "k_major": False, "product": FLOAT16}, (8, 64)),
    ({"block": 128, "n": 20000, "k": 100}, (8, 64)), ({"block": 128, "k": 100}, (8, 128)),
    *(({"block": block, "k_major": False}, None) for block in (16, 32, 256, 512)),
    ({"block": 32, "k_major": False, "scale": FLOAT16, "product": FLOAT16}, (8, 32)),
    ({"block": 32, "k_major": False, "scale": FLOAT16}, (8, 32)),
    ({"block": 32, "k_major": False, "product": FLOAT16}, (8, 32)),
    ({"block": 32, "k_major": False, "scale": BFLOAT16, "product": BFLOAT16}, (8, 32)),
    *(({"block": 0, "k_major": k_major}, (8, 256)) for k_major in (True, False)),
    ({"block": 0, "k_major": False, "k": 1000}, (8, 32)), ({"block": 0, "wanted": 64}, (8, 64)),
    ({"block": 1000, "k_major": False, "k": 1000}, (8, 32)), ({"block": 128, "k_major": False, "k": 100}, None),
])  # fmt: skip
def test_weights_of_8_bits_where_activations_stay_float(
    level: int, given: dict[str, Any], wanted: tuple[int, int] | None
) -> None:
    with refused(None if wanted else Reason.SLOWER):
        assert form(level, **{"element": "uint8", **given}) == wanted


@settings(max_examples=300, deadline=None)
@given(
    k=st.integers(1, 3000),
    n=st.sampled_from([1, 7, 64]),
    block=st.one_of(st.integers(0, 600), st.sampled_from([0, 16, 32, 48, 64, 96, 128, 256, 512, 1024])),
    element=st.sampled_from(["uint2", "int2", "uint4", "int8"]),
    zero=st.booleans(),
    k_major=st.booleans(),
    level=st.sampled_from(LEVELS),
)
def test_any_form_is_one_that_the_kernel_takes(
    k: int, n: int, block: int, element: str, zero: bool, k_major: bool, level: int
) -> None:
    matrix = matrix_of(k, n, block=block, element=element, zero=zero, k_major=k_major)
    try:
        shortened, bits, block_size = form_of(matrix, FLOAT, FusionSettings(0, level))
    except NotFusable as refusal:
        assert refusal.reason in (Reason.BLOCK_SIZE, Reason.SLOWER)  # noqa: PT017
        return
    assert kernel_takes(block_size, bits)
    assert bits in (matrix.bits, 4)
    assert shortened.block % block_size == 0 or shortened.block >= k
    operands = operands_of(shortened, bits, block_size, FLOAT)
    if matrix.block and k % block_size == 0:
        # What pads the lines of zero points apart.
        padding = n if zero else n * (k // block_size) if "zero_points" in operands else 0
        stored = sum(operand.source.nbytes for operand in operands.values() if operand.source is not None)
        assert packed_bytes(operands.values()) <= 3 * stored + padding


# One or more weights for each row of the documentation's table.
DOCUMENTED: list[list[Weight]] = [
    [Weight("uint2", block=16), Weight("int2", block=32)],
    [Weight("uint2", block=64)],
    [Weight("uint2", 1024, block=128), Weight("int2", 1280, block=128)],
    [Weight("uint2", 1024, block=256)],
    [Weight("uint2", block=PER_CHANNEL)],
    [Weight("uint4", 1024, block=block, n_major=block > 32) for block in (16, 32, 128, 256)],
    [Weight("uint8"), Weight("int8", scale="float16", n_major=True)],
    [Weight("uint8", n_major=True)],
    [Weight("uint8", 512, block=PER_CHANNEL), Weight("int8", 512, block=PER_CHANNEL, n_major=True)],
]


@pytest.mark.parametrize("row", range(len(DOCUMENTED)))
@pytest.mark.parametrize("level", LEVELS)
def test_the_documentation_has_it_right(row: int, level: int) -> None:
    """As far as the first words of each cell go, and the block size that it ends with."""
    rows = rows_below("docs/how-it-works.md", "| weight | at accuracy level 4 | below it |")
    assert len(rows) == len(DOCUMENTED)
    cell = rows[row][1 if level else 2].split(";")[0]
    for weight in DOCUMENTED[row]:
        report = inspect(linear(weight).SerializeToString(), options=Options(accuracy_level=level))
        if not report.fused:
            assert [entry.reason for entry in report.unfused] == [Reason.SLOWER]
            assert cell.startswith("left to ONNX Runtime")
            continue
        (fusion,) = report.fused
        bits, block = re.match(r"(\d) bits", cell), re.search(r"in blocks of (\d+)", cell)
        assert fusion.stored_bits == weight.kind.bits
        assert fusion.bits == (int(bits[1]) if bits else weight.kind.bits)
        assert fusion.block_size == (int(block[1]) if block else weight.block)
