"""From DequantizeLinear to readers: chains of nodes, with ONNX Runtime's own values as the reference."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import raw_tensor
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.routes import Routes
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import drawn, locate, refused
from tests.fusion.values import computed, followed, seen_values
from tests.support import Array

ALLOWED = {Reason.PART, Reason.RESHAPE, Reason.JOINED, Reason.FACTOR}
"""Reasons of chains that are as they should be."""


def index(draft: Draft, values: Any, kind: type = np.int64) -> str:
    """Adds a constant of whole numbers, of any rank."""
    array: Array = np.asarray(values, kind)
    code = TensorProto.INT64 if kind is np.int64 else TensorProto.INT32
    return draft.constant(raw_tensor(f"i{len(draft.initializers)}", code, array.shape, array.tobytes()))


def weight_of(data: st.DataObject, draft: Draft, name: str, shape: list[int]) -> str:
    """Adds a weight of that shape."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    block = data.draw(st.sampled_from((-1, 0, 1, 2, 4, 16)))
    element = data.draw(st.sampled_from(("uint4", "int4", "uint8", "int8")))
    zero: Any = data.draw(st.sampled_from(("none", "random", "default")))
    return draft.dequantize(name, shape, axis=axis, block=block, element=element, zero=zero)


def grown(data: st.DataObject, draft: Draft, value: str, shape: list[int]) -> tuple[str, list[int]]:
    """Adds a node behind a weight; its result and the shape of that."""
    kind = data.draw(st.sampled_from(("Transpose", "Reshape", "Slice", "Gather", "Split", "Mul", "Div", "Concat")))
    axis = data.draw(st.integers(0, len(shape) - 1)) if shape else 0
    if kind == "Transpose" and shape:
        perm = data.draw(st.permutations(range(len(shape))))
        return draft.node("Transpose", [value], perm=perm), [shape[at] for at in perm]
    if kind == "Reshape" and len(shape) > 1:
        parts = [part for part in range(2, shape[axis]) if not shape[axis] % part]
        if data.draw(st.booleans()) and parts:
            part = data.draw(st.sampled_from(parts))
            into = [*shape[:axis], part, shape[axis] // part, *shape[axis + 1 :]]
        else:
            into = [*shape[:axis], math.prod(shape[axis:])] if axis < len(shape) - 1 else [1, *shape]
        return draft.node("Reshape", [value, index(draft, into)]), into
    if kind == "Slice" and shape:
        step = data.draw(st.sampled_from((1, 1, 1, 2, -1, -2)))
        start, end = (data.draw(st.integers(-shape[axis] - 2, shape[axis] + 2)) for _ in range(2))
        left = len(range(shape[axis])[start:end:step])
        numbers = [index(draft, [number]) for number in (start, end, axis, step)]
        return (
            (draft.node("Slice", [value, *numbers]), [*shape[:axis], left, *shape[axis + 1 :]]) if left else (value, shape)
        )
    if kind == "Gather" and shape:
        is_single = data.draw(st.booleans())
        size = shape[axis]
        taken = data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=1 if is_single else size))
        given = index(draft, taken[0] if is_single else taken, data.draw(st.sampled_from((np.int64, np.int32))))
        return draft.node("Gather", [value, given], axis=axis), [
            *shape[:axis], *([] if is_single else [len(taken)]), *shape[axis + 1 :]
        ]  # fmt: skip
    if kind == "Split" and shape and shape[axis] > 1:
        first = data.draw(st.integers(1, shape[axis] - 1))
        names = [f"{value}_{axis}_{at}_{len(draft.nodes)}" for at in range(2)]
        draft.node("Split", [value, index(draft, [first, shape[axis] - first])], names[0], axis=axis)
        draft.nodes[-1].output.append(names[1])
        at = data.draw(st.integers(0, 1))
        return names[at], [*shape[:axis], (first, shape[axis] - first)[at], *shape[axis + 1 :]]
    if kind in ("Mul", "Div"):
        sizes = [size if data.draw(st.booleans()) else 1 for size in shape]
        sizes = sizes[data.draw(st.integers(0, len(sizes))) :]
        other = draft.floats(f"f{len(draft.initializers)}", sizes, low=0.5, high=2)
        operands = [other, value] if kind == "Mul" and data.draw(st.booleans()) else [value, other]
        whole = np.broadcast_shapes(tuple(sizes), tuple(shape))
        return draft.node(kind, operands), list(whole)
    if kind == "Concat" and shape:
        return draft.node("Concat", [value, value], axis=axis), [*shape[:axis], 2 * shape[axis], *shape[axis + 1 :]]
    return value, shape


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_chains(data: st.DataObject) -> None:
    draft = Draft("chain")
    shape = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3))
    value = weight_of(data, draft, "w", shape)
    for _ in range(data.draw(st.integers(1, 4))):
        value, shape = grown(data, draft, value, shape)
    (wanted,) = computed(draft, value)
    assert list(wanted.shape) == shape
    draft.node("MatMul", ["x", value], "y")  # by what it is read by, parts are told from lookups
    try:
        seen = followed(draft, value)
    except NotFusable as refusal:
        event(refusal.reason.name)
        assert refusal.reason in ALLOWED  # noqa: PT017
        return
    event("followed")
    found = seen_values(seen)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-30)


FOLLOWED: dict[str, list[Any]] = {
    "a-constant-on-the-left": [("floats", "8", "f"), ("Mul", "f w_d", "v")],
    "a-constant-that-is-computed": [("floats", "8 1", "f"), ("Transpose", "f", "g"), ("Div", "w_d g", "v")],
    "a-scalar": [("floats", "", "f"), ("Mul", "w_d f", "v")],
    "parts-of-a-product": [
        ("floats", "8", "f"), ("Mul", "w_d f", "m"), ("ints", "1 3", "i"), ("Gather", "m i", "v", {"axis": 1}),
    ],
    "a-joint-of-parts": [
        ("ints", "1 3", "i"), ("Gather", "w_d i", "a", {"axis": 1}), ("Transpose", "a", "b"), ("Transpose", "b", "c"),
        ("Concat", "w_d c", "v", {"axis": 1}),
    ],
}  # fmt: skip


def weight(element: str = "uint4") -> Draft:
    draft = Draft("routes")
    draft.input("x", ["m", 32])
    draft.dequantize("w", [32, 8], axis=0, block=16, element=element)
    return draft


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed(name: str) -> None:
    draft = drawn(weight(), *FOLLOWED[name])
    (wanted,) = computed(draft, "v", feeds={"x": np.zeros((1, 32), np.float32)})
    draft.node("MatMul", ["x", "v"], "y")
    found = seen_values(followed(draft, "v"))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


OTHERS: dict[str, list[Any]] = {
    "a-product-with-an-input": [("Mul", "x w_d", "v")],
    "a-constant-divided-by-it": [("floats", "8", "f"), ("Div", "f w_d", "v")],
    "its-square": [("Mul", "w_d w_d", "v")],
    "another-domain": [("floats", "8", "f"), ("Mul", "w_d f", "v", {"domain": "local"})],
    "a-part-by-indices-of-run-time": [("Cast", "x", "i", {"to": TensorProto.INT64}), ("Gather", "w_d i", "v")],
    "indices-of-it": [("ints", "1", "i"), ("Gather", "i w_d", "v")],
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_something_else(name: str) -> None:
    scope = model_scope(drawn(weight(), *OTHERS[name]).model())
    constants = Constants(locate)
    routes = Routes(constants, Centred())
    assert routes.after((scope, len(scope.nodes) - 1), "w_d", routes.weight(scope, "w_d")) is None


@pytest.mark.parametrize(("to", "shape", "fits"), [
    ("3 32 8", [3, "m", 32], True), ("3 1 8", [3, "m", 32], True), ("1 1", ["m", 32], True),
    ("2 3 1 1", [2, 3, 4, 32], True),
    ("3 32 8", [5, 3, "m", 32], True), ("3 32 8", ["b", "m", 32], False), ("3 32 8", [1, "m", 32], False),
    ("3 32 8", ["m", 32], False), ("3 32 8", None, False), ("8", ["m", 32], False), ("0 32 8", [0, 4, 32], False),
])  # fmt: skip
def test_a_weight_for_each_batch(to: str, shape: Any, fits: bool) -> None:
    draft = weight()
    draft.input("b", shape)
    drawn(draft, ("ints", to, "to"), ("Expand", "w_d to", "v"), ("MatMul", "b v", "y"))
    with refused(None if fits else Reason.BATCHED):
        found = followed(draft, "v")
        assert seen_values(found).shape == (*[1] * (len(to.split()) - 2), 32, 8)


@pytest.mark.parametrize("reader", [("Neg", "v", "z"), ("MatMul", "v b", "z"), ("MatMul", "v v", "z")])
def test_a_weight_for_each_batch_of_something_else(reader: tuple[str, str, str]) -> None:
    draft = weight()
    draft.input("b", [3, 8, 32])
    with refused(Reason.BATCHED):
        followed(drawn(draft, ("ints", "3 32 8", "to"), ("Expand", "w_d to", "v"), ("MatMul", "b v", "y"), reader), "v")


def test_a_value_of_other_nodes_is_no_weight() -> None:
    draft = drawn(weight(), ("Neg", "w_d", "n"), ("Transpose", "n", "t"), ("DequantizeLinear", "x w_s", "d"))
    for name in ("n", "t", "x", "d", "nowhere", ""):
        with refused(Reason.JOINED):
            followed(draft, name)


def test_chains_have_an_end() -> None:
    draft, value = weight(), "w_d"
    for _ in range(3000):
        value = draft.node("Identity", [value])
    draft.node("Concat", [value, "w_d"], "c", axis=0)
    with refused(Reason.JOINED):
        followed(draft, "c")
    value = "w_d"
    draft = weight()
    scalar = draft.scalar("f", 1.0)
    for _ in range(20):
        value = draft.node("Mul", [value, scalar])
    seen = followed(draft, value)
    assert (seen.nodes, len(seen.dequantized.factors)) == (20, 1)


def test_parts_that_are_joined_are_found_once() -> None:
    """All parts of a Split in one go: it may have thousands."""
    draft = weight()
    draft.nodes.append(helper.make_node("Split", ["w_d"], ["p", "q"], "split", axis=0, num_outputs=2))
    draft.nodes.append(helper.make_node("Split", ["p", draft.ints("lengths", [8, 7])], ["a", "b"], "wrong", axis=0))
    scope = model_scope(draft.model())
    routes = Routes(Constants(locate), Centred())
    found = {name: routes.weight(scope, name) for name in "pq"}
    assert all(routes.weight(scope, name) is one for name, one in found.items())
    for name in "abab":
        with refused(Reason.INVALID):
            routes.weight(scope, name)


def test_what_the_first_opsets_had() -> None:
    """They broadcast in another way."""
    draft = Draft("routes", opset=6)
    draft.dequantize("w", [32, 8], axis=0, block=-1, element="uint8", domain="com.microsoft")
    draft.node("Mul", ["w_d", draft.floats("f", [8])], "v", broadcast=1)
    scope = model_scope(draft.model())
    routes = Routes(Constants(locate), Centred())
    assert routes.after((scope, 1), "w_d", routes.weight(scope, "w_d")) is None


def test_what_takes_too_many_nodes() -> None:
    draft = weight()
    draft.node("Mul", ["w_d", draft.scalar("f", 1.0)])
    draft.node("Concat", ["w_d"] * 200, "c", axis=0)
    scope = model_scope(draft.model())
    routes = Routes(Constants(locate), Centred())
    long = routes.weight(scope, "w_d")._replace(nodes=1000)
    with refused(Reason.COMPUTED):
        routes.after((scope, 1), "w_d", long)
    with refused(Reason.COMPUTED):
        routes.weight(scope, "c")


def test_what_takes_too_many_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ort_qdq_plugin.fusion.routes._MAX_NUMBERS_READ", 70)
    draft, rows = weight(), list(range(31, -1, -1))
    for name in ("a", "b", "c"):
        draft.node("Gather", ["w_d", draft.ints(f"i{name}", rows)], name, axis=0)
        draft.node("MatMul", [draft.input(f"x{name}", ["m", 32]), name])
    scope = model_scope(draft.model())
    routes = Routes(Constants(locate), Centred())
    for name, reason in (("a", None), ("b", None), ("c", Reason.COMPUTED)):
        with refused(reason):
            routes.weight(scope, name)


def test_a_concat_of_itself_has_an_end() -> None:
    with refused(Reason.OPSET):
        followed(drawn(weight(), ("Concat", "w_d c", "c", {"axis": 0})), "c")


@pytest.mark.parametrize("node", [
    ("Slice", "w_d", "v"), ("Expand", "w_d", "v"), ("Split", "w_d i i", "v"), ("Concat", "w_d", "v", {"unknown": 1}),
    ("Mul", "w_d f", "v", {"unknown": 1}),
])  # fmt: skip
def test_what_no_opset_has(node: Any) -> None:
    with refused(Reason.OPSET):
        followed(drawn(weight(), ("ints", "1", "i"), ("floats", "8", "f"), node), "v")


@pytest.mark.parametrize("op", ["Slice", "Gather", "Mul", "Concat", "Expand", "Transpose"])
def test_what_has_more_outputs_than_it_should(op: str) -> None:
    draft = drawn(weight(), ("ints", "1", "i"), ("floats", "8", "f"), (op, "w_d f" if op == "Mul" else "w_d i i", "v"))
    draft.nodes[-1].output.append("another")
    with refused(Reason.OPSET):
        followed(draft, "v")


def test_numbers_that_cannot_be_read() -> None:
    draft = drawn(weight(), ("ints", "0", "i"), ("ints", "4", "e"), ("Slice", "w_d i e", "v"))
    next(tensor for tensor in draft.initializers if tensor.name == "e").raw_data = b""
    with refused(Reason.INVALID):
        followed(draft, "v")
