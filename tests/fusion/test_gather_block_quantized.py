"""GatherBlockQuantized: which tables it takes, as which operands, and what stands around it."""

import math
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from ort_qdq_plugin.fusion.gather_block_quantized import QuantizedLookup, quantized_lookup
from ort_qdq_plugin.fusion.lookups import Squeezed
from ort_qdq_plugin.model.elements import FLOAT, FLOAT16, UINT8
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import drawn, emitted, evaluated, integers_of, refused
from tests.fusion.tables import SCALES, gather_of, lookup_of
from tests.packing.plain import Array, elements_of, packed_lines, packed_rows


def quantized(shape: tuple[int, ...] = (50, 64), **table: Any) -> QuantizedLookup:
    return quantized_lookup(lookup_of(gather_of(shape, **table)))


@pytest.mark.parametrize(("element", "bits"), [("uint2", 2), ("uint4", 4), ("uint8", 8)])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_unsigned_bytes_are_used_as_they_are_stored(element: str, bits: int, block: int) -> None:
    draft = gather_of(element=element, block=block, opset=25)
    fusion = quantized_lookup(lookup_of(draft))
    (check, node), (numbers,) = emitted(fusion)
    assert (check.op_type, list(check.input)) == ("Gather", ["y_node.rows", "i"])
    np.testing.assert_array_equal(numpy_helper.to_array(numbers), np.arange(50, dtype=np.int32))
    assert (node.op_type, node.domain, node.name) == ("GatherBlockQuantized", "com.microsoft", "y_node")
    assert (list(node.input), list(node.output)) == (["data", check.output[0], "scales", "zero_points"], ["y"])
    assert integers_of(node) == {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
    raw = {tensor.name: tensor.raw_data for tensor in draft.initializers}
    for operand, name in (("data", "w"), ("scales", "w_s")):
        stored = fusion.operands[operand].in_place
        assert stored is not None
        assert stored.read().tobytes() == raw[name]
    assert fusion.operands["data"].shape == (50, 64 * bits // 8)
    assert fusion.operands["data"].data_type == fusion.operands["zero_points"].data_type == UINT8
    assert fusion.operands["scales"].shape == (50, 64 // block)


@pytest.mark.parametrize(("element", "bits"), [("int2", 2), ("int4", 4), ("int8", 8)])
def test_signed_elements_get_their_top_bits_flipped(element: str, bits: int) -> None:
    fusion = quantized((50, 63), element=element, opset=25)
    top = {2: 0b10101010, 4: 0b10001000, 8: 0b10000000}[bits]
    for name, length in (("data", 63), ("zero_points", 2)):
        operand = fusion.operands[name]
        assert operand.source is not None
        shifts = np.arange(0, 8, bits)
        stored = (
            (operand.source.read()[:, None] >> shifts & ((1 << bits) - 1)).reshape(-1)[: 50 * length].reshape(50, length)
        )
        padded = np.pad(stored ^ (top & ((1 << bits) - 1)), ((0, 0), (0, -length % len(shifts)))).reshape(
            50, -1, len(shifts)
        )
        wanted = (padded << shifts).sum(axis=2)
        assert operand.shape == wanted.shape
        np.testing.assert_array_equal(packed_lines(operand).reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("element", "zero", "wanted"),
    [("int4", "none", None), ("int4", "default", None), ("uint4", "default", None), ("uint8", "default", None),
     ("uint4", "random", "stored"), ("int8", "random", "stored"), ("uint4", "none", "zeros"), ("uint8", "none", "zeros")],
)  # fmt: skip
def test_zero_points_are_an_operand_unless_they_are_those_that_it_takes_by_itself(
    element: str, zero: str, wanted: str | None
) -> None:
    fusion = quantized((50, 96), element=element, zero=zero)
    rest = [] if wanted is None else ["zero_points"]
    assert [*fusion.operands] == ["data", "scales", *rest]
    assert [name for name in emitted(fusion)[0][1].input if name in fusion.operands] == ["data", "scales", *rest]
    if wanted is not None:
        operand = fusion.operands["zero_points"]
        assert operand.shape == (50, 2 if element == "uint4" else 3)
        assert (operand.source is None) == (wanted == "zeros")
        assert operand.nbytes == 50 * operand.shape[1]


@pytest.mark.parametrize(
    ("columns", "block_size"), [(1, 16), (15, 16), (16, 16), (17, 32), (64, 64), (65, 128), (1000, 1024)]
)
@pytest.mark.parametrize("scales", ["one", "rows"])
def test_a_scale_for_each_row_is_a_block_of_at_least_the_row(columns: int, block_size: int, scales: str) -> None:
    fusion = quantized((50, columns), element="uint8", **SCALES[scales])
    assert fusion.block_size == block_size
    assert fusion.operands["data"].shape == (50, columns)
    assert fusion.operands["scales"].shape == fusion.operands["zero_points"].shape == (50, 1)
    source = fusion.operands["scales"].source
    assert source is not None
    values = source.read().view(np.float32)
    np.testing.assert_array_equal(packed_lines(fusion.operands["scales"]).view(np.float32).ravel(), np.resize(values, 50))


@pytest.mark.parametrize(("block", "columns", "block_size"), [(48, 96, 16), (48, 100, 16), (96, 100, 32), (80, 90, 16)])
def test_a_block_of_another_size_is_several_with_one_scale(block: int, columns: int, block_size: int) -> None:
    fusion = quantized((50, columns), element="uint8", block=block)
    assert fusion.block_size == block_size
    blocks, of_each = -(-columns // block_size), np.arange(0, columns, block_size) // block
    for name, kind in (("scales", np.float32), ("zero_points", np.uint8)):
        operand = fusion.operands[name]
        assert operand.source is not None
        assert operand.shape == (50, blocks)
        stored = operand.source.read().view(kind).reshape(50, -1)
        np.testing.assert_array_equal(packed_lines(operand).view(kind).reshape(50, blocks), stored[:, of_each])


@pytest.mark.parametrize(
    ("element", "columns", "slices"), [("uint4", 63, 1), ("int2", 66, 1), ("uint2", 64, 0), ("uint8", 63, 0)]
)
def test_elements_that_fill_up_a_byte_are_cut_off(element: str, columns: int, slices: int) -> None:
    nodes, constants = emitted(quantized((50, columns), element=element, opset=25))
    assert [node.op_type for node in nodes] == ["Gather", "GatherBlockQuantized", *["Slice"] * slices]
    assert [numpy_helper.to_array(tensor).tolist() for tensor in constants[1:]] == [[0], [columns], [-1]] * slices
    assert nodes[-1].output[0] == "y"


@pytest.mark.parametrize(
    ("scale", "output", "seen", "computed_in", "casts"),
    [
        ("float", FLOAT, FLOAT, FLOAT, []),
        ("float16", FLOAT16, FLOAT16, FLOAT16, []),
        ("float16", FLOAT16, FLOAT, FLOAT16, [FLOAT]),
        ("float16", FLOAT, FLOAT, FLOAT, []),
        ("float", FLOAT16, FLOAT16, FLOAT, [FLOAT16]),
        ("float", FLOAT, FLOAT16, FLOAT, [FLOAT16]),
    ],
)
def test_it_computes_in_a_type_that_is_as_wide_as_scales_and_results(
    scale: str, output: int, seen: int, computed_in: int, casts: list[int]
) -> None:
    fusion = quantized_lookup(lookup_of(gather_of(scale=scale, output_dtype=output, opset=23), data_type=seen))
    nodes, _ = emitted(fusion)
    assert fusion.operands["scales"].data_type == computed_in
    assert (fusion.operands["scales"].conversion is None) == (computed_in == (FLOAT if scale == "float" else FLOAT16))
    assert [integers_of(node) for node in nodes[2:]] == [{"to": to} for to in casts]


def test_what_the_report_says() -> None:
    entry = quantized().entry()
    assert (entry.node, entry.dequantize, entry.kind) == ("y_node", "w_d_node", "Gather")
    assert (entry.k, entry.n, entry.bits, entry.block_size, entry.layout) == (64, 50, 4, 32, "N-major")
    assert (entry.packed_bytes, entry.borrowed_bytes, entry.has_bias) == (0, 50 * 32 + 50 * 2 * 4 + 50, False)
    assert entry.stored_bytes == 50 * 32 + 50 * 2 * 4 + 50
    assert quantized(element="int4").entry().packed_bytes == 50 * 32 + 50
    assert quantized().operator == "GatherBlockQuantized"


# Tables of matrices


def numbers_of(fusion: QuantizedLookup, indices: Array) -> Array:
    """The numbers of the rows that are looked up for some indices."""
    nodes, constants = emitted(fusion)
    (lookup,) = (node for node in nodes if node.op_type == "GatherBlockQuantized")
    return evaluated(nodes[: nodes.index(lookup)], constants, {"i": indices}, lookup.input[1])


@pytest.mark.parametrize("shape", [(50, 3, 64), (50, 2, 3, 64)])
def test_an_index_stands_for_all_rows_of_its_matrix(shape: tuple[int, ...]) -> None:
    fusion = quantized(shape, axis=len(shape) - 1)
    rows, inner = math.prod(shape[:-1]), shape[1:-1]
    assert fusion.operands["data"].shape == (rows, 32)
    assert fusion.operands["data"].in_place is not None
    assert fusion.operands["scales"].shape == (rows, 2)
    assert fusion.operands["zero_points"].shape == (rows, 1)
    numbers = np.arange(rows).reshape(50, *inner)
    for indices in (np.array(49), np.array([[3, 0], [-1, 7]])):
        np.testing.assert_array_equal(numbers_of(fusion, indices), numbers[indices])


@pytest.mark.parametrize(("element", "bits"), [("uint2", 2), ("int4", 4), ("uint4", 4), ("uint8", 8), ("int8", 8)])
def test_matrices_with_blocks_along_their_columns_are_transposed(element: str, bits: int) -> None:
    fusion = quantized((50, 40, 12), element=element, axis=1, block=16, opset=25)
    wanted = {"data": (12, 40, fusion.lookup.table.weight), "scales": (12, 3, fusion.lookup.table.scales),
              "zero_points": (12, 3, fusion.lookup.table.zero_points)}  # fmt: skip
    for name, (columns, rows, stored) in wanted.items():
        operand = fusion.operands[name]
        assert stored is not None
        size = 32 if name == "scales" else bits
        elements = elements_of(stored.read().tobytes(), size, 50 * rows * columns).reshape(50, rows, columns)
        if element.startswith("int") and name != "scales":
            elements = elements ^ (1 << bits - 1)
        lines = elements.transpose(0, 2, 1).reshape(50 * columns, rows)
        np.testing.assert_array_equal(packed_lines(operand), packed_rows(lines, size, -(-rows * size // 8)))
        assert operand.shape == (50 * columns, operand.line_bytes // (4 if name == "scales" else 1))


IN_ROWS, IN_COLUMNS = {"axis": 2}, {"axis": 1, "block": 16}


@pytest.mark.parametrize(("table", "is_swapped"), [(IN_ROWS, True), (IN_COLUMNS, False)])
@pytest.mark.parametrize(("indices", "perm"), [((), [1, 0]), ((3,), [0, 2, 1]), ((2, "n"), [0, 1, 3, 2])])
def test_a_result_that_is_wanted_the_other_way_round_is_transposed(
    table: dict[str, Any], is_swapped: bool, indices: tuple[int | str, ...], perm: list[int]
) -> None:
    draft = gather_of((50, 32, 64), indices=indices, **table)
    nodes, _ = emitted(quantized_lookup(lookup_of(draft, is_swapped=is_swapped)))
    assert [node.op_type for node in nodes] == ["Gather", "Add", "GatherBlockQuantized", "Transpose"]
    assert list(nodes[-1].attribute[0].ints) == perm
    plain = quantized_lookup(lookup_of(draft, is_swapped=not is_swapped))
    assert [node.op_type for node in emitted(plain)[0]] == ["Gather", "Add", "GatherBlockQuantized"]
    with refused(Reason.GATHER):
        quantized_lookup(lookup_of(draft, is_swapped=is_swapped, indices_rank=None))


def test_a_squeeze_goes_before_that_so_that_a_product_can_follow() -> None:
    lookup = lookup_of(drawn(gather_of((50, 32, 64), indices=(1, 3), axis=2), ("Squeeze", "y axes", "s")), is_swapped=True)
    scope = lookup.site.replaced[0][0]
    gather = lookup.site._replace(replaced=((scope, len(scope.nodes) - 2),), output="y")
    lookup = lookup._replace(site=gather, squeezed=Squeezed((scope, len(scope.nodes) - 1), "axes", 1))
    fusion = quantized_lookup(lookup)
    assert [index for _, index in fusion.site.replaced] == [len(scope.nodes) - 2, len(scope.nodes) - 1]
    nodes, _ = emitted(fusion)
    assert [node.op_type for node in nodes] == ["Gather", "Add", "GatherBlockQuantized", "Squeeze", "Transpose"]
    assert (list(nodes[-2].input)[1:], list(nodes[-1].attribute[0].ints)) == (["axes"], [0, 2, 1])
    assert list(nodes[-1].output) == ["s"]
    plain = quantized_lookup(lookup._replace(is_swapped=False))
    assert (plain.site, emitted(plain)[0][-1].op_type) == (gather, "GatherBlockQuantized")


def test_what_the_report_says_of_matrices() -> None:
    for table, layout in ((IN_ROWS, "N-major"), (IN_COLUMNS, "K-major")):
        entry = quantized((50, 32, 64), **table).entry()
        k, n = (64, 32) if layout == "N-major" else (32, 64)
        assert (entry.k, entry.n, entry.layout) == (k, 50 * n, layout)


REFUSED: dict[str, dict[str, Any]] = {
    "blocks-of-8": {"block": 8}, "blocks-of-40": {"shape": (50, 96), "block": 40},
    "a-scale-for-each-column": SCALES["columns"], "a-scale-for-each-matrix": {"shape": (50, 4, 64), **SCALES["rows"]},
    "a-scale-for-each-column-of-cubes": {"shape": (50, 4, 64), "axis": 2, "block": 0},
    "matrices-that-end-within-a-byte": {"shape": (50, 33, 65), "axis": 1},
    "more-rows-of-matrices-than-can-be-numbered": {"shape": (2, (1 << 24) + 1, 1), **SCALES["one"]},
    "matrices-before-sums-of-any-shape": {"shape": (50, 4, 64), **SCALES["one"], "opset": 6},
    "a-vector": {"shape": (50,), **SCALES["one"]}, "half-bytes-before-slices": {"shape": (50, 63), "opset": 9},
    "more-rows-than-can-be-numbered": {"shape": ((1 << 24) + 1, 1), **SCALES["one"]},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_take_is_refused(name: str) -> None:
    table = dict(REFUSED[name])
    opset = table.pop("opset", 21)
    lookup = lookup_of(gather_of(table.pop("shape", (50, 64)), **table), opset=opset)
    with refused(Reason.GATHER):
        quantized_lookup(lookup)
