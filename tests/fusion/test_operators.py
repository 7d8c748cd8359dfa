"""The table of operators, line by line against the installed onnx package."""

from __future__ import annotations

import pytest
from onnx import TensorProto, defs

from ort_qdq_plugin.fusion.operators import LAST_OPSET, OPERATORS, operator_at

CODES = {f"tensor({name.lower()})": code for name, code in TensorProto.DataType.items()}
KNOWN = min(LAST_OPSET, defs.onnx_opset_version())


@pytest.mark.parametrize("opset", range(1, KNOWN + 1))
@pytest.mark.parametrize("op_type", OPERATORS)
def test_operators_are_as_onnx_has_them(op_type: str, opset: int) -> None:
    ours = operator_at(op_type, opset)
    try:
        schema = defs.get_schema(op_type, opset)
    except defs.SchemaError:
        assert ours is None
        return
    assert ours is not None
    assert (schema.min_output, schema.max_output) == (1, 1)
    assert (ours.required, len(ours.types)) == (schema.min_input, schema.max_input)
    assert [set(types) for types in ours.types] == [
        {CODES[name] for name in given.types if name in CODES} for given in schema.inputs
    ]
    assert ours.attributes == {name: int(getattr(given.type, "value", -1)) for name, given in schema.attributes.items()}


def test_beyond_the_table_the_installed_package_is_asked() -> None:
    newer = operator_at("MatMul", LAST_OPSET + 1)
    assert newer == operator_at("MatMul", KNOWN)


@pytest.mark.parametrize("op_type", ["Relu", "NoSuchOperator", ""])
def test_other_operators_are_unknown(op_type: str) -> None:
    assert operator_at(op_type, 21) is None
