"""The table of operators."""

import pytest
from onnx import helper

from conformance.drawing.elements import MS
from ort_qdq_plugin.model import glance, held
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, WEIGHT_TYPES
from ort_qdq_plugin.model.operators import OPERATORS, Role, operator_of, role_of


def test_every_operator_has_one_row() -> None:
    assert len({(row.domain, row.op_type) for row in OPERATORS}) == len(OPERATORS)


def test_readers_and_only_they_are_fused() -> None:
    assert [row for row in OPERATORS if row.role == "reader"] == [row for row in OPERATORS if row.fused_by]


NOTHING = (None, "")


@pytest.mark.parametrize(("op_type", "domain", "wanted"), [
    ("MatMul", "", ("reader", "matmul")), ("Gemm", "ai.onnx", ("reader", "matmul")),
    ("FusedMatMul", MS, ("reader", "matmul")), ("Gather", "ai.onnx", ("reader", "gather")),
    *(("DequantizeLinear", domain, ("dequantize", "")) for domain in ("", "ai.onnx", MS)),
    ("Transpose", "ai.onnx", ("view", "")), ("Constant", "", ("constant", "")), ("Add", "", ("bias", "")),
    ("FusedMatMul", "", NOTHING), ("MatMul", MS, NOTHING), ("Gather", MS, NOTHING), ("Transpose", "local", NOTHING),
    ("DequantizeLinear", "local", NOTHING), ("QuantizeLinear", "com.microsoft", NOTHING), ("MatMulInteger", "", NOTHING),
    ("GatherElements", "", NOTHING), ("Conv", "", ("reader", "conv")), ("", "", NOTHING),
])  # fmt: skip
def test_what_an_operator_is_to_a_weight(op_type: str, domain: str, wanted: tuple[Role | None, str]) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    row = operator_of(node)
    assert (row is None) == (wanted == NOTHING)
    assert (role_of(node), row.fused_by if row else "") == wanted
    assert row is None or (row.op_type, row.role) == (op_type, wanted[0])


def test_what_a_look_at_a_model_says_again() -> None:
    def op_types(*roles: str, fused_by: tuple[str, ...] = ()) -> set[bytes]:
        return {row.op_type.encode() for row in OPERATORS if row.role in roles or row.fused_by in fused_by}

    kinds = {row.fused_by for row in OPERATORS} - {""}
    assert op_types("view") == glance._VIEWS
    assert op_types(fused_by=("matmul",)) == glance._PRODUCTS
    assert op_types(fused_by=tuple(kinds - {"conv"})) == glance._READERS
    assert {row.domain.encode() for row in OPERATORS if row.role == "dequantize"} | {
        b"ai.onnx"
    } == glance._DEQUANTIZE_DOMAINS
    assert {code for code in WEIGHT_TYPES if ELEMENTS[code].bits < 8} == glance._BELOW_A_BYTE
    codes = [CODES[name] for name in ("float", "uint8", "int8", "int32")]
    assert codes == [glance._FLOAT, glance._UINT8, glance._INT8, glance._INT32]
    assert op_types("reader") | {b"Mul", b"Div"} == held._READERS
    assert op_types("view", "folded") == held._VIEWS
    assert WEIGHT_TYPES == held._WEIGHT_TYPES
