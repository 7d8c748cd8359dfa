"""The table of operators."""

import pytest
from onnx import helper

from conformance.drawing.elements import MS
from ort_qdq_plugin.model.operators import OPERATORS, Role, operator_of, role_of


def test_every_operator_has_one_row() -> None:
    assert len({(row.domain, row.op_type) for row in OPERATORS}) == len(OPERATORS)


def test_readers_and_only_they_are_fused() -> None:
    assert [row for row in OPERATORS if row.role == "reader"] == [row for row in OPERATORS if row.fused_by]


@pytest.mark.parametrize(
    ("op_type", "domain", "role", "fused_by"),
    [
        ("MatMul", "", "reader", "matmul"),
        ("Gemm", "ai.onnx", "reader", "matmul"),
        ("FusedMatMul", MS, "reader", "matmul"),
        ("Gather", "ai.onnx", "reader", "gather"),
        ("DequantizeLinear", "", "dequantize", ""),
        ("DequantizeLinear", MS, "dequantize", ""),
        ("Transpose", "ai.onnx", "view", ""),
        ("Constant", "", "constant", ""),
        ("Add", "", "bias", ""),
    ],
)
def test_what_an_operator_is_to_a_weight(op_type: str, domain: str, role: Role, fused_by: str) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    row = operator_of(node)
    assert row is not None
    assert (row.op_type, row.role, row.fused_by) == (op_type, role, fused_by)
    assert role_of(node) == role


@pytest.mark.parametrize(
    ("op_type", "domain"),
    [
        ("FusedMatMul", ""),
        ("MatMul", MS),
        ("Gather", MS),
        ("Transpose", "local"),
        ("MatMulInteger", ""),
        ("GatherElements", ""),
        ("Conv", ""),
        ("", ""),
    ],
)
def test_other_operators_are_nothing_to_a_weight(op_type: str, domain: str) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    assert operator_of(node) is None
    assert role_of(node) is None
