"""The rule for lookups: what of a table shares a scale, which forms there are for it, and which tables are small."""

import math
from typing import Any

import pytest

from ort_qdq_plugin.fusion.lookups import CHOICES, MANY, Form, Scales, choice_for, is_small, scales_of, shape_in_rows
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, FLOAT16
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import read, refused, scope_and_site
from tests.fusion.tables import SCALES, gather_of, lookup_of


@pytest.mark.parametrize(
    ("table", "scales"),
    [
        *((SCALES[name], Scales[name.upper()]) for name in SCALES),
        ({"block": 64}, Scales.ROWS),
        ({"block": 100}, Scales.ROWS),
        ({"shape": (50, 4, 64), "axis": 2, "block": 64}, Scales.BLOCKS),
        ({"shape": (50, 4, 64), "axis": 1, "block": 2}, Scales.BLOCKS),
        ({"shape": (50, 4, 64), "axis": 2, "block": 0}, Scales.COLUMNS),
        ({"axis": 0, "block": 16}, None),
    ],
)
def test_what_shares_a_scale(table: dict[str, Any], scales: Scales | None) -> None:
    scope, _ = scope_and_site(gather_of(**table))
    with refused(None if scales else Reason.GATHER):
        assert scales_of(read(scope)) is scales


def test_every_table_of_bytes_has_a_choice_and_columns_of_smaller_elements_have_none() -> None:
    types, kinds = (FLOAT, FLOAT16), [(is_bytes, scales) for is_bytes in (True, False) for scales in Scales]
    assert {(data_type, *kind) for data_type in types for kind in kinds if kind != (False, Scales.COLUMNS)} == CHOICES.keys()
    for (_, is_bytes, _), choice in CHOICES.items():
        assert choice.forms
        assert is_bytes or choice.forms == (Form.QUANTIZED,)
    for draft in (gather_of(**SCALES["columns"]), gather_of(scale="bfloat16")):
        with refused(Reason.GATHER):
            choice_for(read(scope_and_site(draft)[0]), scales_of(read(scope_and_site(draft)[0])))


@pytest.mark.parametrize("length", [16, 128, 4096])
@pytest.mark.parametrize("key", CHOICES)
def test_a_table_is_small_where_many_lookups_cost_more_than_all_of_it(key: tuple[int, bool, Scales], length: int) -> None:
    choice = CHOICES[key]
    border = MANY * (choice.row + choice.looked_up * length) / (choice.whole * length)
    for unknown in (None, (None,), (2, None)):
        assert is_small((round(border * 0.5), length), choice, unknown)
        assert not is_small((round(border * 1.02), length), choice, unknown)
    assert is_small((round(border * 0.5), length // 4, 4), choice, (64, 64))
    assert not is_small((round(border * 0.51), length), choice, (MANY // 2,))
    # Of matrices few are looked up: each of their rows is one.
    matrices = 8 * border / MANY
    assert is_small((int(matrices * 0.5), 1024, length), choice, None)
    assert not is_small((math.ceil(matrices * 1.02), 1024, length), choice, None)
    # Nobody notices what a few indices cost.
    assert not is_small((10, 16), choice, ())
    assert not is_small((10, 16), choice, (2, 3))
    assert not is_small((10, 16), choice, (0, 1000))
    assert is_small((10, 16), choice, (2, 1000))


@pytest.mark.parametrize(
    ("computed", "table", "seen", "casts"),
    [
        (FLOAT, FLOAT, FLOAT, []),
        (FLOAT, FLOAT16, FLOAT16, [FLOAT16]),
        (FLOAT, FLOAT16, FLOAT, [FLOAT16, FLOAT]),
        (FLOAT16, FLOAT16, FLOAT, [FLOAT]),
        (FLOAT, FLOAT, BFLOAT16, [BFLOAT16]),
    ],
)
def test_what_the_model_rounds_is_rounded(computed: int, table: int, seen: int, casts: list[int]) -> None:
    lookup = lookup_of(gather_of())
    lookup = lookup._replace(table=lookup.table._replace(output_type=table), data_type=seen)
    assert lookup.casts(computed) == casts


@pytest.mark.parametrize(
    ("element", "zero", "needed"),
    [("int8", "none", False), ("int8", "default", False), ("int8", "random", True), ("uint8", "none", False),
     ("uint8", "default", True), ("uint8", "random", True)],
)  # fmt: skip
def test_zero_points_that_are_0_are_none(element: str, zero: str, needed: bool) -> None:
    assert lookup_of(gather_of(element=element, zero=zero)).has_zero_points == needed


@pytest.mark.parametrize(
    ("table", "shape"),
    [
        ({"shape": (50, 4, 64), "axis": 2}, (50, 4, 64)),
        ({"shape": (50, 64, 4), "axis": 1}, (50, 4, 64)),
        ({"shape": (2, 50, 64, 4), "axis": 2}, (2, 50, 4, 64)),
        ({"shape": (50, 64, 4), "axis": 1, "block": 0, "element": "uint8"}, (50, 64, 4)),
        ({"shape": (50, 64), "axis": 1}, (50, 64)),
    ],
)
def test_blocks_in_columns_are_of_other_rows(table: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert shape_in_rows(read(scope_and_site(gather_of(**table))[0])) == shape


def test_a_row_has_all_elements_but_those_of_the_first_axis() -> None:
    assert lookup_of(gather_of((50, 64))).row_length == 64
    assert lookup_of(gather_of((50, 4, 64), axis=2)).row_length == 256
    assert lookup_of(gather_of((50,), **SCALES["rows"])).row_length == 1
