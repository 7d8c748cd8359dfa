"""Model-local functions: what is refused before inlining, and that what is let through is what ONNX's inliner can take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper
from onnx.inliner import inline_local_functions

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model import functions as functions_module
from ort_qdq_plugin.model.functions import check_functions

OPSETS = (("", 21), ("local", 1))


def function(
    name: str, body: Iterable[NodeProto], inputs: str = "a", overload: str = "", opsets: Iterable[tuple[str, int]] = OPSETS
) -> FunctionProto:
    """A function `local.name` with these inputs, one letter each, and the output `b`."""
    imported = [helper.make_opsetid(*opset) for opset in opsets]
    made: FunctionProto = helper.make_function("local", name, list(inputs), ["b"], list(body), imported)
    made.overload = overload
    return made


def call(name: str, source: str = "a", target: str = "b", domain: str = "local") -> NodeProto:
    made: NodeProto = helper.make_node(name, source.split(), [target], domain=domain)
    return made


def neg(source: str = "a", target: str = "b") -> NodeProto:
    return call("Neg", source, target, domain="")


def calls_in_a_row(names: Iterable[str]) -> list[NodeProto]:
    """A body that gives `a` to the first function, its result to the next one, and so on."""
    named = list(names)
    values = ["a", *(f"v{at}" for at in range(len(named) - 1)), "b"]
    return [call(name, source, target) for name, (source, target) in zip(named, pairwise(values), strict=True)]


def model_of(
    functions: Iterable[FunctionProto], nodes: Iterable[NodeProto] | None = None, opsets: Iterable[tuple[str, int]] = OPSETS
) -> ModelProto:
    """y = f(x), unless other nodes are given."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([call("f", "x", "y")] if nodes is None else list(nodes), "g", ends[:1], ends[1:])
    imported = [helper.make_opsetid(*opset) for opset in opsets]
    model: ModelProto = helper.make_model(graph, functions=list(functions), opset_imports=imported, ir_version=10)
    return model


def test_functions_that_are_as_they_should_be() -> None:
    model = model_of([function("f", [call("g", "a", "c"), neg("c", "b")]), function("g", [neg()])])
    check_functions(model)
    check_functions(ModelProto())
    assert [node.op_type for node in inline_local_functions(model).graph.node] == ["Neg", "Neg"]


# What is not as the specification has it


REFUSED: Mapping[str, tuple[ModelProto, str]] = {
    "domain-not-imported": (model_of([function("f", [neg()])], opsets=[("", 21)]), "domain is not imported"),
    "domain-of-an-unused-function-not-imported": (
        model_of([function("f", [neg()])], [neg("x", "y")], [("", 21)]),
        "domain is not imported",
    ),
    "one-domain-of-two-not-imported": (
        model_of(
            [
                function("f", [neg()]),
                helper.make_function("other", "g", ["a"], ["b"], [neg()], [helper.make_opsetid("", 21)]),
            ]
        ),
        "domain is not imported",
    ),
    "another-opset": (model_of([function("f", [neg()], opsets=[("", 20)])]), "another opset"),
    "another-version-of-its-own-domain": (
        model_of([function("f", [neg()], opsets=[("", 21), ("local", 2)])]),
        "another opset",
    ),
    "domain-of-an-operator-not-imported": (
        model_of([function("f", [call("FusedMatMul", domain="com.microsoft")])]),
        "does not import",
    ),
    "own-domain-not-imported": (
        model_of([function("f", [call("g")], opsets=[("", 21)]), function("g", [neg()])]),
        "does not import",
    ),
    "long-name-not-imported": (model_of([function("f", [call("Neg", domain="ai.onnx")])]), "does not import"),
    "the-same-twice": (model_of([function("f", [neg()]), function("f", [neg()])]), "two functions"),
    "calls-itself": (model_of([function("f", [call("f")])]), "calls itself"),
    "calls-itself-through-another": (
        model_of([function("f", [call("g")]), function("g", [call("f")])]),
        "calls itself",
    ),
    "nodes-of-one-name": (
        model_of(
            [function("f", [neg()])],
            [helper.make_node("f", ["x"], [name], "n", domain="local") for name in ("y", "z")],
        ),
        "the same name",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    model, problem = REFUSED[name]
    with pytest.raises(ModelError, match=problem):
        check_functions(model)


def test_opsets_that_the_model_does_not_import_may_be_a_functions_own() -> None:
    opsets = [*OPSETS, ("com.microsoft", 1)]
    check_functions(model_of([function("f", [call("FusedMatMul", domain="com.microsoft")], opsets=opsets)]))


def test_overloads_are_functions_of_their_own() -> None:
    """One that calls the other overload does not call itself."""
    inner = call("f")
    inner.overload = "2"
    check_functions(model_of([function("f", [inner]), function("f", [neg()], overload="2")]))
    with pytest.raises(ModelError, match="two functions"):
        check_functions(model_of([function("f", [neg()], overload="2"), function("f", [neg()], overload="2")]))


def test_a_call_that_is_given_a_graph_is_refused() -> None:
    branch = helper.make_graph([neg("x", "own")], "branch", [], [])
    node = helper.make_node("f", ["x"], ["y"], domain="local", g=branch)
    with pytest.raises(ModelError, match="given a graph"):
        check_functions(model_of([function("f", [neg()])], [node]))


# Depth


def chain(length: int, within_a_branch: bool = False) -> ModelProto:
    """f calls f1, which calls f2, and so on: so many functions, each in the body of the one before it."""
    names = ["f", *(f"f{at}" for at in range(1, length))]
    made = [function(name, [call(called)]) for name, called in pairwise(names)]
    functions = [*made, function(names[-1], [neg()])]
    if not within_a_branch:
        return model_of(functions)
    output = helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)
    branch = helper.make_graph([call("f", "x", "inside")], "branch", [], [output])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    made_if = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return model_of(functions, [helper.make_node("Constant", [], ["c"], value=condition), made_if])


@pytest.mark.parametrize("order", ["as-called", "reversed"])
def test_a_hundred_levels_are_the_most(order: str) -> None:
    """In whatever order the functions are stored: those that were counted already are not counted as less deep."""

    def ordered(model: ModelProto) -> ModelProto:
        if order == "reversed":
            functions = list(model.functions)[::-1]
            del model.functions[:]
            model.functions.extend(functions)
        return model

    deepest = ordered(chain(100))
    check_functions(deepest)
    assert [node.op_type for node in inline_local_functions(deepest).graph.node] == ["Neg"]
    with pytest.raises(ModelError, match="more than 100"):
        check_functions(ordered(chain(101)))


def test_a_function_that_is_counted_at_one_depth_is_judged_at_the_next() -> None:
    """The main graph calls the last 60 of 100 functions first, then all of them from within 10 more."""
    model = chain(100)
    model.functions.extend(function(f"o{at}", [call(f"o{at + 1}" if at < 9 else "f")]) for at in range(10))
    del model.graph.node[:]
    model.graph.node.append(call("f40", "x", "h"))
    check_functions(model)
    model.graph.node.append(call("o0", "h", "y"))
    with pytest.raises(ModelError, match="more than 100"):
        check_functions(model)


def test_a_branch_is_a_level_too() -> None:
    check_functions(chain(99, within_a_branch=True))
    with pytest.raises(ModelError, match="more than 100"):
        check_functions(chain(100, within_a_branch=True))


# Size


def doubling(levels: int) -> ModelProto:
    """Each function calls the next one twice: 2**levels nodes."""
    names = ["f", *(f"f{at}" for at in range(1, levels)), "last"]
    made = [function(name, calls_in_a_row([called, called])) for name, called in pairwise(names)]
    return model_of([*made, function("last", [neg()])])


def test_functions_that_double_are_refused_before_they_are_huge() -> None:
    assert len(inline_local_functions(doubling(10)).graph.node) == 2**10
    check_functions(doubling(10))
    for levels in (20, 60):
        with pytest.raises(ModelError, match="once they are inlined"):
            check_functions(doubling(levels))


def test_attributes_that_are_repeated_count() -> None:
    """100 KB that the function's body refers to 1000 times."""
    body = [helper.make_node("Constant", [], [f"c{at}"]) for at in range(1000)]
    for node in body:
        node.attribute.add(name="value_ints", ref_attr_name="given", type=onnx.AttributeProto.INTS)
    made = function("f", [*body, neg()])
    made.attribute.append("given")
    node = call("f", "x", "y")
    check_functions(model_of([made], [node]))
    node.attribute.append(helper.make_attribute("given", [1] * 100_000))
    with pytest.raises(ModelError, match="once they are inlined"):
        check_functions(model_of([made], [node]))


def test_names_that_are_repeated_count() -> None:
    """A name of 100 KB that a function's 2000 nodes read."""
    made = function("f", [*(neg("a", f"n{at}") for at in range(2000)), neg()])
    check_functions(model_of([made]))
    with pytest.raises(ModelError, match="once they are inlined"):
        check_functions(model_of([made], [call("f", "x" * 100_000, "y")]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), max_size=4), min_size=1, max_size=7), st.integers(1, 40))
def test_the_bound_is_never_below_what_inlining_gives(steps: list[list[int]], length: int) -> None:
    """Function number n calls those that are so many further on, or has a node where there are none."""
    names = ["f", *(f"f{at}" for at in range(1, len(steps)))]
    bodies = [[names[at + step] for step in further if at + step < len(names)] for at, further in enumerate(steps)]
    made = [function(name, calls_in_a_row(body) if body else [neg()]) for name, body in zip(names, bodies, strict=True)]
    model = model_of(made, [call("f", "x" * length, "y")])
    model.graph.input[0].name = "x" * length
    check_functions(model)
    inlined = sum(node.ByteSize() for node in inline_local_functions(model).graph.node)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions_module, "_MAX_INLINED_BYTES", inlined - 1)
        with pytest.raises(ModelError, match="once they are inlined"):
            check_functions(model)


# Elements of less than a byte


def with_weight(functions: Iterable[FunctionProto], element: int, nodes: Iterable[NodeProto]) -> ModelProto:
    model = model_of(functions, nodes)
    model.graph.initializer.append(TensorProto(name="w", data_type=element, dims=[2], raw_data=bytes(2)))
    return model


NODES = {
    "read-by-an-operator": (True, [function("f", [call("DequantizeLinear", "c a", domain="")], "ac")]),
    "read-by-nothing": (False, [function("f", [neg()], "ac")]),
    "handed-on": (False, [function("f", [call("g", "c")], "ac"), function("g", [neg()])]),
    "read-and-handed-on": (
        False,
        [function("f", [neg("c", "d"), call("g", "c")], "ac"), function("g", [neg()])],
    ),
}


@pytest.mark.parametrize("element", [TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.UINT8])
@pytest.mark.parametrize("name", NODES)
def test_elements_below_a_byte_go_to_functions_whose_operators_read_them(name: str, element: int) -> None:
    """By operators alone ONNX Runtime knows which types a function takes; whole bytes it does not mind."""
    says_so, functions = NODES[name]
    model = with_weight(functions, element, [call("f", "x w", "y")])
    if says_so or element == TensorProto.UINT8:
        check_functions(model)
    else:
        with pytest.raises(ModelError, match="less than a byte"):
            check_functions(model)


def test_inputs_beyond_those_that_a_function_has_are_no_matter() -> None:
    check_functions(with_weight([function("f", [neg()])], TensorProto.UINT4, [call("f", "x w", "y")]))
