"""Nodes that would be taken away: those that an opset has are let through, whatever else is wrong with one is not.

What an opset has is compared with the installed onnx package, version by version.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, defs, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from ort_qdq_plugin.fusion.validity import is_as_specified, schema_at
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.operators import LAST_OPSET, OPERATORS, Operator
from tests.fusion.support import drawn

FLOAT, FLOAT16, UINT4, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT4, TensorProto.INT64


CODES = {f"tensor({name.lower()})": code for name, code in TensorProto.DataType.items()}
ANY = 2**31 - 1  # as onnx.defs has it
KNOWN = min(LAST_OPSET, defs.onnx_opset_version())
ANY = 2**31 - 1  # inputs or outputs
STANDARD = [row for row in OPERATORS if not row.domain]
_BY_NAME = {(row.domain, row.op_type): row for row in OPERATORS}


@pytest.mark.parametrize("row", STANDARD, ids=lambda row: row.op_type)
def test_operators_are_as_onnx_has_them(row: Operator) -> None:
    for opset in range(1, KNOWN + 1):
        ours = schema_at(row, opset)
        try:
            schema = defs.get_schema(row.op_type, opset)
        except defs.SchemaError:
            assert ours is None, opset
            continue
        assert ours is not None, opset
        assert (schema.min_output, schema.max_output) == (1, ANY if row.splits else 1), opset
        counts = ours.required, ANY if ours.any_inputs else len(ours.types)
        assert counts == (schema.min_input, schema.max_input), opset
        theirs = [{CODES[name] for name in given.types if name in CODES} for given in schema.inputs]
        assert [set(types) for types in ours.types] == theirs, opset
        kinds = {name: int(getattr(given.type, "value", -1)) for name, given in schema.attributes.items()}
        assert ours.attributes == kinds, opset


@pytest.mark.parametrize("row", STANDARD, ids=lambda row: row.op_type)
def test_beyond_the_table_the_installed_package_is_asked(row: Operator) -> None:
    assert schema_at(row, LAST_OPSET + 1) == schema_at(row, KNOWN)
    assert schema_at(row, 2**31) is None


def test_operators_of_onnx_runtime_take_its_types() -> None:
    found = {schema.name: schema for schema in get_all_operator_schema() if schema.domain == MS}
    for op_type in ("DequantizeLinear", "FusedMatMul"):
        ours = schema_at(_BY_NAME[MS, op_type], 1)
        assert ours is not None
        constraints = {one.type_param_str: one.allowed_type_strs for one in found[op_type].type_constraints}
        assert [set(types) for types in ours.types] == [
            {CODES[name] for name in constraints[given.typeStr]} for given in found[op_type].inputs
        ]


def fits(draft: Draft, opset: int = 21) -> bool:
    """Whether the last node that was drawn is let through."""
    return is_as_specified(model_scope(draft.model()), len(draft.nodes) - 1, opset)


def draft_of(op: str, *inputs: str, domain: str = "", **attributes: Any) -> Draft:
    """A node behind values of every kind: x, y and half [m, 4], batch [b, m, 4], w_d of a weight, and v without a shape."""
    draft = Draft("schemas")
    draft.input("x", ["m", 4])
    draft.input("y", ["m", 4])
    draft.input("batch", ["b", "m", 4])
    draft.dequantize("w", [4, 4], axis=0, block=4)
    draft.node("Custom", ["x"], "v", domain="local")
    draft.node("Cast", ["x"], "half", to=FLOAT16)
    draft.ints("axes", [0])
    draft.node(op, list(inputs), "out", domain=domain, **attributes)
    return draft


def dequantize(**attributes: Any) -> Draft:
    return draft_of("DequantizeLinear", "w", "w_s", **{"axis": 0, "block_size": 4, **attributes})


# What is as it should be

FINE: dict[str, Draft] = {
    "Add": draft_of("Add", "x", "y"),
    "Cast": draft_of("Cast", "x", to=FLOAT16),
    "Constant": draft_of("Constant", value=numpy_helper.from_array(np.array(1, np.float32))),
    "DequantizeLinear": draft_of("DequantizeLinear", "w", "w_s", "w_z", axis=0, block_size=4),
    "DequantizeLinear-without-zero-points": draft_of("DequantizeLinear", "w", "w_s", "", axis=0),
    "Flatten": draft_of("Flatten", "x", axis=0),
    "Gather": draft_of("Gather", "w_d", "axes", axis=0),
    "Gemm": draft_of("Gemm", "x", "w_d", "y", alpha=2.0, beta=1.0, transA=0, transB=1),
    "Gemm-of-unknown-rank": draft_of("Gemm", "v", "w_d"),
    "Identity": draft_of("Identity", "x"),
    "MatMul": draft_of("MatMul", "batch", "w_d"),
    "MatMul-by-the-long-name": draft_of("MatMul", "batch", "w_d", domain="ai.onnx"),
    "Reshape": draft_of("Reshape", "x", "axes", allowzero=0),
    "Squeeze": draft_of("Squeeze", "x"),
    "Transpose": draft_of("Transpose", "x", perm=[1, 0]),
    "Unsqueeze": draft_of("Unsqueeze", "x", "axes"),
    "DequantizeLinear-of-microsoft": dequantize(domain=MS, block_size=None),
    "FusedMatMul": draft_of(
        "FusedMatMul", "x", "w_d", domain=MS, alpha=0.5, transA=1, transB=0, transBatchA=0, transBatchB=1
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_nodes_that_the_opset_has(name: str) -> None:
    assert fits(FINE[name])


# What is not

REFUSED: dict[str, Draft] = {
    "no such operator": draft_of("MatMull", "x", "w_d"),
    "an operator that nothing is known of": draft_of("Relu", "x"),
    "the domain of another operator": draft_of("MatMul", "x", "w_d", domain=MS),
    "an operator of ONNX Runtime in the standard domain": draft_of("FusedMatMul", "x", "w_d"),
    "too few inputs": draft_of("MatMul", "x"),
    "too many inputs": draft_of("MatMul", "x", "w_d", "y"),
    "too many inputs for ONNX Runtime's operator": draft_of("FusedMatMul", "x", "w_d", "y", domain=MS),
    "a constant of a type that it does not take": draft_of("MatMul", "x", "w"),
    "indices of a type that it does not take": draft_of("Gather", "w_d", "w_s"),
    "an attribute of another operator": draft_of("MatMul", "x", "w_d", alpha=1.0),
    "an attribute of another type": draft_of("Transpose", "x", perm=1),
    "an attribute of the standard operator": dequantize(domain=MS),
    "an input that is nowhere": draft_of("MatMul", "x", "nowhere"),
    "an input that it makes itself": draft_of("MatMul", "x", "out"),
    "a Gemm of three axes": draft_of("Gemm", "batch", "w_d"),
    "a Gemm of three axes on the right": draft_of("Gemm", "x", "batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nodes_that_no_opset_has(name: str) -> None:
    assert not fits(REFUSED[name])


@pytest.mark.parametrize(("outputs", "wanted"), [([], False), (["a"], True), (["a", "b"], False), (["a", ""], False)])
def test_there_is_one_output(outputs: list[str], wanted: bool) -> None:
    draft = draft_of("MatMul", "x", "w_d")
    del draft.nodes[-1].output[:]
    draft.nodes[-1].output.extend(outputs)
    assert fits(draft) == wanted


# What is drawn, the opset that has it, and one that does not.
@pytest.mark.parametrize(("draft", "has", "has_not"), [
    (dequantize(), 21, 20), (dequantize(block_size=None, output_dtype=FLOAT), 23, 21),
    (draft_of("Unsqueeze", "x", axes=[0]), 12, 13), (draft_of("Unsqueeze", "x", "axes"), 13, 12),
    (draft_of("Reshape", "x", "axes", allowzero=1), 14, 13), (draft_of("Gemm", "x", "w_d"), 11, 10),
    (draft_of("MatMul", "x", "w_d"), 1, 0),
])  # fmt: skip
def test_what_an_opset_has(draft: Draft, has: int, has_not: int) -> None:
    assert fits(draft, has)
    assert not fits(draft, has_not)


def test_operators_of_onnx_runtime_are_those_of_all_opsets() -> None:
    assert fits(draft_of("FusedMatMul", "x", "w_d", domain=MS), 1)


def attribute(name: str = "perm", kind: AttributeProto.AttributeType = AttributeProto.INTS, **value: Any) -> AttributeProto:
    return AttributeProto(name=name, type=kind, **value)


ONE = attribute(ints=[1, 0])
ATTRIBUTES: dict[str, tuple[str, list[AttributeProto], bool]] = {
    "one": ("Transpose", [ONE], True), "empty": ("Transpose", [attribute()], True),
    "twice": ("Transpose", [ONE, ONE], False),
    "two values": ("Transpose", [attribute(ints=[1, 0], i=1)], False),
    "the value of another type": ("Transpose", [attribute(floats=[1.0])], False),
    "no type": ("Transpose", [attribute(kind=AttributeProto.UNDEFINED, ints=[1, 0])], False),
    "another type": ("Transpose", [attribute(kind=AttributeProto.FLOATS, ints=[1, 0])], False),
    "no number": ("Flatten", [attribute("axis", AttributeProto.INT)], False),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_have_a_value_of_their_type(name: str) -> None:
    op, attributes, wanted = ATTRIBUTES[name]
    draft = draft_of(op, "x")
    draft.nodes[-1].attribute.extend(attributes)
    assert fits(draft) == wanted


# What the model states

STATED: dict[str, tuple[Callable[[Draft], None], bool]] = {
    "nothing": (lambda draft: None, True),
    "the weight's own type": (lambda draft: draft.declare("w", [4, 4], "uint4"), True),
    "another type of the weight": (lambda draft: draft.declare("w", [4, 4], "int4"), False),
    "the type of the result": (lambda draft: draft.declare("out", [4, 4]), True),
    "another type of the result": (lambda draft: draft.declare("out", [4, 4], "float16"), False),
}


@pytest.mark.parametrize("name", STATED)
def test_types_are_as_stated(name: str) -> None:
    draft = dequantize()
    change, wanted = STATED[name]
    change(draft)
    assert fits(draft) == wanted


@pytest.mark.parametrize(
    ("draft", "wanted", "others"),
    [
        (draft_of("Cast", "x", to=FLOAT16), {"float16"}, {"float", "bfloat16"}),
        (dequantize(), {"float"}, {"float16", "uint4"}),
        (dequantize(output_dtype=0), {"float"}, {"float16"}),
        (dequantize(output_dtype=FLOAT16), {"float16"}, {"float"}),
        (draft_of("Constant", value=numpy_helper.from_array(np.array(1, np.int64))), {"int64"}, {"float"}),
        (draft_of("Constant", value_int=1), {"int64"}, {"float"}),
        (draft_of("Constant", value_ints=[1, 2]), {"int64"}, {"float"}),
        (draft_of("Constant", value_floats=[1.0]), {"float"}, {"int64"}),
        (draft_of("Transpose", "w_d"), {"float"}, {"float16"}),
        (draft_of("Transpose", "half"), {"float16"}, {"float"}),
        (draft_of("Identity", "axes"), {"int64"}, {"float"}),
        (draft_of("MatMul", "x", "w_d"), {"float", "float16", "bfloat16"}, {"int64", "uint4"}),
        (draft_of("MatMul", "half", "w_d"), {"float16"}, {"float"}),
    ],
)
def test_the_type_of_a_result_follows_from_its_operands(draft: Draft, wanted: set[str], others: set[str]) -> None:
    for kind in wanted | others:
        draft.values.clear()
        draft.declare("out", [4, 4], kind)
        assert fits(draft, 23) == (kind in wanted)


COMPUTED_SCALES: dict[str, tuple[list[tuple[Any, ...]], set[str]]] = {
    "dequantized": ([("DequantizeLinear", "q w_s", "s", {"axis": 0})], {"float"}),
    "dequantized-to": ([("DequantizeLinear", "q w_s", "s", {"axis": 0, "output_dtype": FLOAT16})], {"float16"}),
    "cast": ([("Cast", "w_s", "s", {"to": FLOAT16})], {"float16"}),
    "multiplied": ([("Cast", "w_s", "c", {"to": FLOAT16}), ("Mul", "c c", "m"), ("Reshape", "m axes", "s")], {"float16"}),
    "looked-up": ([("Gather", "w_s axes", "s")], {"float", "float16", "bfloat16"}),
    "of-one-number": ([("ConstantOfShape", "axes", "s")], {"float", "float16", "bfloat16"}),
    "without-scales": ([("DequantizeLinear", "q", "s")], {"float", "float16", "bfloat16"}),
    "of-nothing": ([("Neg", "", "s")], {"float", "float16", "bfloat16"}),
    "many-nodes": (
        [
            ("Cast", "w_s", "s0", {"to": FLOAT16}),
            *(("Neg", f"s{at}", f"s{at + 1}") for at in range(20)),
            ("Neg", "s20", "s"),
        ],
        {"float", "float16", "bfloat16"},
    ),
}


@pytest.mark.parametrize("name", COMPUTED_SCALES)
def test_scales_that_are_computed_have_the_type_that_their_nodes_tell(name: str) -> None:
    """And any type of scales where that is not told. Simplifiers state the types of all values."""
    nodes, wanted = COMPUTED_SCALES[name]
    for kind in ("float", "float16", "bfloat16", "int64", "uint8"):
        draft = draft_of("Identity", "x")
        draft.quantized("q", "uint8", [1, 4])
        drawn(draft, *nodes, ("DequantizeLinear", "w s", "d", {"axis": 0, "block_size": 4}))
        draft.declare("d", [4, 4], kind)
        assert fits(draft, 23) == (kind in wanted)


def test_types_that_nobody_knows_are_left_to_onnx_runtime() -> None:
    draft = draft_of("MatMul", "x", "w")
    weight = next(tensor for tensor in draft.initializers if tensor.name == "w")
    weight.data_type = 29
    assert fits(draft)


def test_a_node_in_a_branch_may_read_what_is_before_the_branch() -> None:
    def branching(*reads: str) -> Draft:
        nodes: list[NodeProto] = [helper.make_node("MatMul", list(reads), ["b"], "inside")]
        branch = helper.make_graph(nodes, "branch", [], [helper.make_empty_tensor_value_info("b")])
        draft = draft_of("If", "k", then_branch=branch)
        draft.input("k", [], "bool")
        draft.node("Neg", ["x"], "later")
        return draft

    for reads, wanted in ((("x", "w_d"), True), (("later", "w_d"), False)):
        (scope,) = model_scope(branching(*reads).model()).children
        assert is_as_specified(scope, 0, 21) == wanted
