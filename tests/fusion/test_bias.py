"""What is added to a product: which constants become MatMulNBits' own bias, and with which values."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS, raw_tensor
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.bias import MAX_FACTOR, Addend, Bias, check_bias, following_bias, own_bias
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate, StoredTensor
from ort_qdq_plugin.report import Reason
from tests.fusion.support import locate, refused
from tests.support import Array

N = 8
FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
MAX_NEW_BIAS_BYTES = 4096


def missing(_: TensorProto) -> StoredTensor:
    raise ModelError("not there")


# Checking


def check(
    shape: Sequence[int | str] | None,
    *,
    constant: bool = False,
    op: str = "Gemm",
    x: Sequence[int | str] | None = (5, 4),
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


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((), True),
        ((1,), True),
        ((N,), True),
        ((1, N), True),
        ((5, N), True),
        ((5, 1), True),
        ((4,), False),
        ((5,), False),
        ((4, N), False),
        ((N, 5), False),
        ((0,), False),
        ((1, 1, N), False),
    ],
)
def test_a_bias_has_to_fit_the_result(shape: tuple[int, ...], fits: bool, constant: bool) -> None:
    with nullcontext() if fits else refused(Reason.INVALID):
        check(shape, constant=constant)


@pytest.mark.parametrize(
    ("shape", "fits"), [((5,), True), ((N, 5), True), ((N, 1), True), ((1,), True), ((N,), False), ((5, N), False)]
)
@pytest.mark.parametrize(("x", "attributes"), [((4, 5), {}), ((5, 4), {"transB": 1}), ((4, 5), {"transA": 1})])
def test_with_the_weight_on_the_left_its_rows_are_those_of_the_result(
    shape: tuple[int, ...], fits: bool, x: tuple[int, int], attributes: dict[str, Any]
) -> None:
    with nullcontext() if fits else refused(Reason.INVALID):
        check(shape, x=x, weight_on_left=True, **attributes)


@pytest.mark.parametrize(("x", "attributes"), [((4, 5), {"transA": 1}), ((5, 4), {"transB": 1}), ((5, 4), {"transA": 0})])
def test_rows_are_those_of_the_activation_as_the_product_sees_it(x: tuple[int, int], attributes: dict[str, Any]) -> None:
    check((5, N), x=x, **attributes)
    with refused(Reason.INVALID):
        check((4, N), x=x, **attributes)


@pytest.mark.parametrize("x", [("m", 4), (5,), (5, 5, 5), None])
def test_rows_that_only_the_run_tells_cannot_be_checked(x: Sequence[int | str] | None) -> None:
    """An Add would repeat one row of the product for each of the bias's, where Gemm is an error."""
    check((1, N), x=x)
    with refused(Reason.INVALID):
        check((5, N), x=x)


@pytest.mark.parametrize("shape", [("m", "n"), ("n",), None])
def test_a_bias_whose_size_is_not_known_may_fit(shape: Sequence[str] | None) -> None:
    check(shape)


def test_a_bias_that_is_not_all_there_is_refused() -> None:
    with refused(Reason.INVALID):
        check((N,), constant=True, locating=missing)


@pytest.mark.parametrize(("op", "inputs"), [("Gemm", ["x", "w"]), ("Gemm", ["x", "w", ""]), ("MatMul", ["x", "w", "c"])])
def test_where_there_is_no_bias_there_is_nothing_to_check(op: str, inputs: list[str]) -> None:
    check((3,), constant=True, op=op, inputs=inputs, locating=missing)


# A Gemm's own


def own(tensor: TensorProto, beta: float = 1.0, n: int = N, data_type: int = FLOAT) -> Bias:
    draft = Draft("bias")
    draft.initializers.append(tensor)
    return own_bias(model_scope(draft.model()), Addend(tensor.name, beta), n, data_type, locate)


def constant(shape: Sequence[int], dtype: Any = np.float32) -> tuple[TensorProto, Array]:
    values = np.random.default_rng(0).integers(-9, 9, tuple(shape)).astype(dtype)
    return numpy_helper.from_array(values, "c"), values


def test_no_bias_is_none() -> None:
    assert own_bias(model_scope(Draft("bias").model()), None, N, FLOAT, missing) == Bias()


@pytest.mark.parametrize("n", [1, N, MAX_NEW_BIAS_BYTES])
def test_a_row_is_taken_as_it_is(n: int) -> None:
    assert own(constant([n])[0], n=n) == Bias(own="c")


@pytest.mark.parametrize(("dtype", "data_type"), [(np.float32, FLOAT), (np.float16, FLOAT16)])
@pytest.mark.parametrize(
    ("shape", "beta"),
    [((N,), 0.5), ((N,), -3.0), ((1, N), 1.0), ((1, 1, N), 2.0), ((), 1.0), ((1,), 1.0), ((1,), 0.25), ((1, 1), 1.0)],
)
def test_what_is_scaled_or_repeated_is_made_anew(shape: tuple[int, ...], beta: float, dtype: Any, data_type: int) -> None:
    tensor, values = constant(shape, dtype)
    made = own(tensor, beta, data_type=data_type)
    assert made.addend is None
    assert isinstance(made.own, TensorProto)
    result = numpy_helper.to_array(made.own)
    assert (result.dtype, result.shape) == (dtype, (N,))
    np.testing.assert_array_equal(result, np.broadcast_to((values * dtype(beta)).reshape(-1), N))


@pytest.mark.parametrize("shape", [(5, N), (N, 1), (5, 1), (2,), (0,)])
def test_what_is_no_row_is_added(shape: tuple[int, ...]) -> None:
    assert own(constant(shape)[0]) == Bias(addend=Addend("c", 1.0))


def test_a_constant_of_another_type_is_added() -> None:
    assert own(constant([N], np.float16)[0]) == Bias(addend=Addend("c", 1.0))


def test_a_constant_of_more_axes_than_numpy_allows_is_added() -> None:
    tensor = raw_tensor("c", FLOAT, [1] * (MAX_RANK + 1), bytes(4))
    assert own(tensor) == Bias(addend=Addend("c", 1.0))


@pytest.mark.parametrize(("dtype", "data_type", "most"), [(np.float32, FLOAT, 1024), (np.float16, FLOAT16, 2048)])
def test_what_is_large_is_not_made_anew(dtype: Any, data_type: int, most: int) -> None:
    assert most * np.dtype(dtype).itemsize == MAX_NEW_BIAS_BYTES
    assert own(constant([most], dtype)[0], 2.0, most, data_type).addend is None
    assert own(constant([most + 1], dtype)[0], 2.0, most + 1, data_type) == Bias(addend=Addend("c", 2.0))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_factor_that_could_overflow_is_not_multiplied_in(sign: int) -> None:
    assert own(constant([N])[0], sign * MAX_FACTOR).addend is None
    beyond = sign * MAX_FACTOR * 1.01
    assert own(constant([N])[0], beyond) == Bias(addend=Addend("c", beyond))


def test_a_constant_that_is_not_all_there_is_refused() -> None:
    with refused(Reason.INVALID):
        own(raw_tensor("c", FLOAT, [N], b"short"), 2.0)


def dequantized(shape: Sequence[int], beta: float = 1.0, *, held: bool = True, op: str = "DequantizeLinear") -> Bias:
    """What becomes of a bias that is stored as integers."""
    draft = Draft("bias")
    if held:
        draft.quantized("q", "int32", shape)
    else:
        draft.input("q", shape, "int32")
    draft.node(op, ["q", draft.scalar("s", 0.5)], "c")
    return own_bias(model_scope(draft.model()), Addend("c", beta), N, FLOAT, locate)


def test_a_row_of_integers_is_taken_when_it_is_dequantized() -> None:
    assert dequantized([N]) == Bias(own="c")


@pytest.mark.parametrize(
    "bias",
    [
        dequantized([N], 0.5),
        dequantized([1, N]),
        dequantized([1]),
        dequantized([N], held=False),
        dequantized([N], op="Custom"),
    ],
    ids=["scaled", "of two axes", "of one element", "computed", "made by another node"],
)
def test_other_values_that_are_computed_are_added(bias: Bias) -> None:
    assert bias.own is None
    assert bias.addend is not None
    assert bias.addend.name == "c"


def test_an_input_of_the_graph_is_added() -> None:
    draft = Draft("bias")
    draft.input("c", [N])
    assert own_bias(model_scope(draft.model()), Addend("c", 1.0), N, FLOAT, missing) == Bias(addend=Addend("c", 1.0))


# One that follows


def following(
    *,
    x: Sequence[int | str] = ("m", 4),
    bias: Sequence[int] = (N,),
    kind: str = "float",
    inputs: Sequence[str] = ("p", "c"),
    op: str = "Add",
    domain: str = "",
    product: str = "MatMul",
) -> tuple[Bias, int]:
    """What becomes of y = x @ w + c, and where the Add is."""
    draft = Draft("bias")
    draft.input("x", x)
    draft.node(product, ["x", "w"], "p", domain=MS if product == "FusedMatMul" else "")
    draft.floats("c", bias, kind)
    draft.node(op, list(inputs), "y", domain=domain)
    scope = model_scope(draft.model())
    at = next(index for index, node in enumerate(scope.nodes) if node.output[0] == "p")
    return following_bias(scope, scope.nodes[at], "x", N, FLOAT16 if kind == "float16" else FLOAT), at + 1


@pytest.mark.parametrize("inputs", [("p", "c"), ("c", "p")])
@pytest.mark.parametrize("x", [("m", 4), (3, 4), (2, 3, 4)])
def test_a_row_that_is_added_is_taken_with_its_add(x: Sequence[int | str], inputs: Sequence[str]) -> None:
    bias, at = following(x=x, inputs=inputs)
    assert (bias.own, bias.addend) == ("c", None)
    assert bias.add is not None
    assert bias.add[1] == at


@pytest.mark.parametrize(("kind", "taken"), [("float", False), ("float16", True)])
def test_where_onnx_runtime_may_have_another_use_for_the_add_it_stays(kind: str, taken: bool) -> None:
    """In float its CPU provider may join the Add with what follows; in float16 there is nothing to join it with."""
    assert (following(x=("b", "m", 4), kind=kind)[0].add is not None) == taken


def test_of_other_products_the_shape_is_not_asked() -> None:
    assert following(product="FusedMatMul")[0] == Bias()
    assert following(product="FusedMatMul", kind="float16")[0].own == "c"


OTHERS: dict[str, dict[str, Any]] = {
    "two axes": {"bias": (1, N)},
    "another size": {"bias": (1,)},
    "another operator": {"op": "Sub"},
    "another domain": {"domain": "local"},
    "three inputs": {"inputs": ("p", "c", "c")},
    "one input": {"inputs": ("p",)},
    "the product twice": {"inputs": ("p", "p")},
    "no constant": {"inputs": ("p", "x")},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_added_otherwise_stays(name: str) -> None:
    assert following(**OTHERS[name])[0] == Bias()


def test_a_row_of_another_type_stays() -> None:
    draft = Draft("bias")
    draft.input("x", ["m", 4])
    draft.node("MatMul", ["x", "w"], "p")
    draft.node("Add", ["p", draft.floats("c", [N], "float16")], "y")
    scope = model_scope(draft.model())
    assert following_bias(scope, scope.nodes[0], "x", N, FLOAT) == Bias()


@pytest.mark.parametrize("needed", ["before", "behind", "by a branch", "as an output"])
def test_a_product_that_is_needed_elsewhere_keeps_its_add(needed: str) -> None:
    draft = Draft("bias")
    draft.input("x", ["m", 4])
    draft.node("MatMul", ["x", "w"], "p")
    if needed == "before":
        draft.node("Relu", ["p"], "z")
    draft.node("Add", ["p", draft.floats("c", [N])], "y")
    if needed == "behind":
        draft.node("Relu", ["p"], "z")
    elif needed == "by a branch":
        draft.node(
            "If", ["k"], "z", then_branch=helper.make_graph([helper.make_node("Neg", ["p"], ["b"])], "branch", [], [])
        )
    elif needed == "as an output":
        draft.output("p", ["m", N])
    scope = model_scope(draft.model())
    assert following_bias(scope, scope.nodes[0], "x", N, FLOAT) == Bias()


def test_an_add_in_a_branch_stays() -> None:
    """Even if the main graph has one in the same place."""
    draft = Draft("bias")
    draft.input("x", ["m", 4])
    draft.node("Add", [draft.floats("c", [N]), "p"], "y")
    branch = draft.graph("branch")
    del branch.input[:], branch.initializer[:]
    draft.nodes[0].input[1], draft.nodes[0].output[0] = "x", "z"
    draft.node("MatMul", ["x", "w"], "p")
    draft.node("If", ["k"], "v", then_branch=branch)
    scope = model_scope(draft.model())
    assert scope.uses("p") == [(scope.children[0], 0)]
    assert following_bias(scope, scope.nodes[1], "x", N, FLOAT) == Bias()
