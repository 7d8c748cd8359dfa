"""What is added to a product: which constants become MatMulNBits' own bias, and with which values."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS, raw_tensor
from ort_qdq_plugin.fusion.bias import Addend, Bias, check_bias, following_bias, own_bias
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import drawn, locate, missing, refused
from tests.support import Array

Shape = Sequence[int | str] | None
N = 8
FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
MAX_NEW_BIAS_BYTES = 4096


# Checking


def check(
    shape: Shape,
    *,
    constant: bool = False,
    op: str = "Gemm",
    x: Shape = (5, 4),
    weight_on_left: bool = False,
    inputs: Sequence[str] | None = None,
    locating: Locate = locate,
    **attributes: Any,
) -> None:
    """Check y = x @ w + c, with a bias of this shape; without a shape, nothing is known of the value."""
    draft = Draft("bias")
    if x is not None:
        draft.input("x", x)
    if shape is not None and constant:
        draft.floats("c", [int(size) for size in shape])
    elif shape is not None:
        draft.input("c", shape)
    draft.node(op, inputs or (["w", "x", "c"] if weight_on_left else ["x", "w", "c"]), "y", **attributes)
    scope = model_scope(draft.model())
    check_bias(scope, scope.nodes[-1], weight_on_left, N, locating)


NONE_THERE = {"constant": True, "locating": missing}
# What is checked, which shapes fit, and which do not.
SHAPES: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    *(
        ({"constant": constant}, [(), (1,), (N,), (1, N), (5, N), (5, 1)], [(4,), (5,), (4, N), (N, 5), (0,), (1, 1, N)])
        for constant in (False, True)
    ),
    # With the weight on the left its rows are those of the result.
    *(
        ({"weight_on_left": True, **rest}, [(5,), (N, 5), (N, 1), (1,)], [(N,), (5, N)])
        for rest in ({"x": (4, 5)}, {"x": (5, 4), "transB": 1}, {"x": (4, 5), "transA": 1})
    ),
    # Rows are those of the activation as the product sees it.
    *((rest, [(5, N)], [(4, N)]) for rest in ({"x": (4, 5), "transA": 1}, {"transB": 1}, {"transA": 0})),
    # Rows that only the run tells: an Add would repeat one row of the product for each of the bias's, Gemm is an error.
    *(({"x": x}, [(1, N)], [(5, N)]) for x in [("m", 4), (5,), (5, 5, 5), None]),
    # A size that is not known may be the right one.
    ({}, [("m", "n"), ("n",), None], []),
    # A bias that is not all there.
    (NONE_THERE, [], [(N,)]),
    # No bias: there is nothing to check.
    *(({**NONE_THERE, "inputs": inputs}, [(3,)], []) for inputs in (["x", "w"], ["x", "w", ""])),
    ({**NONE_THERE, "op": "MatMul"}, [(3,)], []),
]


@pytest.mark.parametrize(
    ("given", "shape", "fits"),
    [(row[0], shape, fits) for row in SHAPES for fits, shapes in ((True, row[1]), (False, row[2])) for shape in shapes],
)
def test_a_bias_has_to_fit_the_result(given: dict[str, Any], shape: Shape, fits: bool) -> None:
    with refused(None if fits else Reason.INVALID):
        check(shape, **given)


# A Gemm's own


def own(tensor: TensorProto, beta: float = 1.0, n: int = N, data_type: int = FLOAT) -> Bias:
    draft = Draft("bias")
    draft.initializers.append(tensor)
    return own_bias(model_scope(draft.model()), Addend(tensor.name, beta), n, data_type, locate)


def constant(shape: Sequence[int], dtype: Any = np.float32) -> tuple[TensorProto, Array]:
    values = np.random.default_rng(0).integers(-9, 9, tuple(shape)).astype(dtype)
    return numpy_helper.from_array(values, "c"), values


@pytest.mark.parametrize(("dtype", "data_type"), [(np.float32, FLOAT), (np.float16, FLOAT16)])
@pytest.mark.parametrize(("shape", "beta"), [
    ((N,), 0.5), ((N,), -3.0), ((1, N), 1.0), ((1, 1, N), 2.0), ((), 1.0), ((1,), 1.0), ((1,), 0.25), ((1, 1), 1.0),
])  # fmt: skip
def test_what_is_scaled_or_repeated_is_made_anew(shape: tuple[int, ...], beta: float, dtype: Any, data_type: int) -> None:
    tensor, values = constant(shape, dtype)
    made = own(tensor, beta, data_type=data_type)
    assert made.addend is None
    assert isinstance(made.own, TensorProto)
    result = numpy_helper.to_array(made.own)
    assert (result.dtype, result.shape) == (dtype, (N,))
    np.testing.assert_array_equal(result, np.broadcast_to((values * dtype(beta)).reshape(-1), N))


MOST, MOST_HALVES = MAX_NEW_BIAS_BYTES // 4, MAX_NEW_BIAS_BYTES // 2
# A constant, beta, N, and the product's type; and whether it is taken as it is, made anew or added.
OWN: list[tuple[TensorProto, float, int, int, str]] = [
    *((constant([n])[0], 1.0, n, FLOAT, "as it is") for n in (1, N, MAX_NEW_BIAS_BYTES)),
    *((constant(shape)[0], 1.0, N, FLOAT, "added") for shape in [(5, N), (N, 1), (5, 1), (2,), (0,)]),
    (constant([N], np.float16)[0], 1.0, N, FLOAT, "added"),
    (raw_tensor("c", FLOAT, [1] * (MAX_RANK + 1), bytes(4)), 1.0, N, FLOAT, "added"),  # more axes than NumPy allows
    (constant([MOST])[0], 2.0, MOST, FLOAT, "anew"),
    (constant([MOST + 1])[0], 2.0, MOST + 1, FLOAT, "added"),
    (constant([MOST_HALVES], np.float16)[0], 2.0, MOST_HALVES, FLOAT16, "anew"),
    (constant([MOST_HALVES + 1], np.float16)[0], 2.0, MOST_HALVES + 1, FLOAT16, "added"),
    # In float, a node that multiplies would give the same, whatever the factor. In float16 only where nothing is rounded.
    *((constant([N])[0], beta, N, FLOAT, "anew") for beta in (0.3, -65530.0, 1e-30, 3e38, math.inf, math.nan)),
    *((constant([N], np.float16)[0], beta, N, FLOAT16, "anew") for beta in (2.0**-14, -(2.0**12), 3.0)),
    *((constant([N], np.float16)[0], beta, N, FLOAT16, "added") for beta in (0.3, 65530.0, 2.0**-26, 1 + 2.0**-11)),
]


@pytest.mark.parametrize(("tensor", "beta", "n", "data_type", "how"), OWN)
def test_what_becomes_of_a_constant(tensor: TensorProto, beta: float, n: int, data_type: int, how: str) -> None:
    bias = own(tensor, beta, n, data_type)
    if how == "anew":
        assert (type(bias.own), bias.addend) == (TensorProto, None)
    else:
        assert bias == (Bias(own="c") if how == "as it is" else Bias(addend=Addend("c", beta)))


def test_no_bias_is_none() -> None:
    assert own_bias(model_scope(Draft("bias").model()), None, N, FLOAT, missing) == Bias()


def test_a_constant_that_is_not_all_there_is_refused() -> None:
    with refused(Reason.INVALID):
        own(raw_tensor("c", FLOAT, [N], b"short"), 2.0)


# A value that is no constant: its shape, Gemm's beta, and the node that makes it of integers; whether the model holds these.
DQ = "DequantizeLinear"
A_ROW = ([N], 1.0, DQ, True)


@pytest.mark.parametrize(("shape", "beta", "op", "held"), [
    A_ROW, ([N], 0.5, DQ, True), ([1, N], 1.0, DQ, True), ([1], 1.0, DQ, True), ([N], 1.0, DQ, False),
    ([N], 1.0, "Custom", True), ([N], 1.0, "", False),
])  # fmt: skip
def test_of_what_is_no_constant_only_a_dequantized_row_is_taken(shape: list[int], beta: float, op: str, held: bool) -> None:
    draft = Draft("bias")
    q = draft.quantized("q", "int32", shape) if held else draft.input("q", shape, "int32")
    if op:
        draft.node(op, [q, draft.scalar("s", 0.5)], "c")
    else:
        draft.input("c", shape)
    bias = own_bias(model_scope(draft.model()), Addend("c", beta), N, FLOAT, locate)
    assert bias == (Bias(own="c") if (shape, beta, op, held) == A_ROW else Bias(addend=Addend("c", beta)))


# One that follows


READS_P = helper.make_graph([helper.make_node("Neg", ["p"], ["b"])], "branch", [], [])
NEEDED: dict[str, tuple[Any, ...]] = {
    "before": ("Relu", "p", "z"),
    "behind": ("Relu", "p", "z"),
    "by a branch": ("If", "k", "z", {"then_branch": READS_P}),
    "as an output": ("output", f"1 {N}", "p"),
}


def following(
    *,
    x: Sequence[int | str] = ("m", 4),
    bias: Sequence[int] = (N,),
    kind: str = "float",
    inputs: str = "p c",
    op: str = "Add",
    domain: str = "",
    product: str = "MatMul",
    data_type: int | None = None,
    needed: str = "",
) -> Bias:
    """What becomes of y = x @ w + c. The product may be needed elsewhere."""
    draft = Draft("bias")
    draft.input("x", x)
    draft.floats("c", bias, kind)
    others, add = [NEEDED[needed]] if needed else [], (op, inputs, "y", {"domain": domain})
    drawn(draft, (product, "x w", "p", {"domain": MS if product == "FusedMatMul" else ""}))
    drawn(draft, *([*others, add] if needed == "before" else [add, *others]))
    scope = model_scope(draft.model())
    data_type = data_type or (FLOAT16 if kind == "float16" else FLOAT)
    return following_bias(scope, scope.nodes[0], "x", N, data_type)


@pytest.mark.parametrize("inputs", ["p c", "c p"])
@pytest.mark.parametrize("x", [("m", 4), (3, 4), (2, 3, 4)])
def test_a_row_that_is_added_is_taken_with_its_add(x: Sequence[int | str], inputs: str) -> None:
    bias = following(x=x, inputs=inputs)
    assert (bias.own, bias.addend) == ("c", None)
    assert bias.add is not None
    assert bias.add[1] == 1


@pytest.mark.parametrize(("kind", "taken"), [("float", False), ("float16", True)])
@pytest.mark.parametrize("given", [{"x": ("b", "m", 4)}, {"product": "FusedMatMul"}])
def test_where_onnx_runtime_may_have_another_use_for_the_add_it_stays(given: dict[str, Any], kind: str, taken: bool) -> None:
    """In float its CPU provider may join the Add with what follows; in float16 there is nothing to join it with."""
    assert following(kind=kind, **given).own == ("c" if taken else None)


OTHERS: dict[str, dict[str, Any]] = {
    "two axes": {"bias": (1, N)}, "another size": {"bias": (1,)}, "another type": {"kind": "float16", "data_type": FLOAT},
    "another operator": {"op": "Sub"}, "another domain": {"domain": "local"}, "three inputs": {"inputs": "p c c"},
    "one input": {"inputs": "p"}, "the product twice": {"inputs": "p p"}, "no constant": {"inputs": "p x"},
    **{f"needed {where}": {"needed": where} for where in NEEDED},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_added_otherwise_stays(name: str) -> None:
    assert following(**OTHERS[name]) == Bias()


def test_an_add_in_a_branch_stays() -> None:
    """Even if the main graph has one in the same place."""
    draft, inside = Draft("bias"), Draft("inside")
    draft.input("x", ["m", 4])
    draft.node("Add", [draft.floats("c", [N]), "x"], "z")
    draft.node("MatMul", ["x", "w"], "p")
    inside.node("Add", ["c", "p"], "y")
    draft.node("If", ["k"], "v", then_branch=inside.graph("branch"))
    scope = model_scope(draft.model())
    assert scope.uses("p") == [(scope.children[0], 0)]
    assert following_bias(scope, scope.nodes[1], "x", N, FLOAT) == Bias()
