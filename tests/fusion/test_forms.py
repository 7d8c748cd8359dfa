"""Weights in words."""

from typing import Any

import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin import inspect
from tests.support import linear


def form_of(draft: Draft) -> str:
    """What the report says of a graph's only weight."""
    report = inspect(draft.model().SerializeToString())
    assert len(report.fused) + len(report.unfused) == 1
    return report.fused[0].form if report.fused else report.unfused[0].form


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "uint4 [128, 64], blocks of 32 along axis 0"),
        ({"n_major": True, "element": "int2"}, "int2 [64, 128], blocks of 32 along axis 1"),
        ({"block": PER_CHANNEL, "element": "int8"}, "int8 [128, 64], per channel of axis 1"),
        ({"block": PER_TENSOR}, "uint4 [128, 64], per tensor"),
    ],
)
def test_what_shares_a_scale(how: dict[str, Any], said: str) -> None:
    (entry,) = inspect(linear(Weight(**how)).SerializeToString()).fused
    assert entry.form == said


def drawn(nodes: str) -> Draft:
    draft = Draft("forms")
    draft.input("x", ["m", 64])
    draft.output("y", ["m", 48])
    draft.quantized("w", "int8", (48, 64))
    draft.floats("f", (64, 48))
    draft.floats("s", (48,))
    draft.floats("t", ())
    draft.write(nodes)
    return draft


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("v = Transpose <perm = [1, 0]> (w)  w_d = DequantizeLinear <axis = 1> (v, s)",
         "int8 [64, 48], per channel of axis 1, behind Transpose"),
        ("q = QuantizeLinear <output_dtype = 3> (f, t)  v = Identity(q)  w_d = DequantizeLinear(v, t)",
         "int8 [64, 48], per tensor, behind QuantizeLinear, Identity"),
        ("v = Transpose <perm = [1, 0]> (w)  u = Mul(s, t)  w_d = DequantizeLinear <axis = 1> (v, u)",
         "int8 [64, 48], per channel of axis 1, behind Transpose, scales behind Mul"),
        ("v = Transpose <perm = [1, 0]> (w)  c = Cast <to = 1> (v)  w_d = Mul(c, s)",
         "int8 [48, 64], per channel of axis 0, written out as Transpose, Cast, Mul"),
    ],
)  # fmt: skip
def test_what_it_is_behind(nodes: str, said: str) -> None:
    assert form_of(drawn(f"{nodes}  y = MatMul(x, w_d)")) == said


def test_what_cannot_be_read() -> None:
    draft = drawn("v = Transpose <perm = [1, 0]> (w)  w_d = DequantizeLinear(v, r)  y = MatMul(x, w_d)")
    draft.input("r", [])
    assert form_of(draft) == "int8 [48, 64], behind Transpose"


def test_types_that_no_weight_has() -> None:
    draft = drawn("y = MatMul(x, w_d)")
    draft.constant(TensorProto(name="b", data_type=99, dims=[64, 48]))
    draft.nodes.insert(0, draft.nodes.pop())
    draft.write("w_d = DequantizeLinear(b, t)")
    draft.nodes.reverse()
    (entry,) = inspect(draft.model().SerializeToString(), check=False).unfused
    assert entry.form == "unknown [64, 48]"
