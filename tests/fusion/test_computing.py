"""What nodes make of constants, compared with ONNX Runtime's own kernels to the last bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper

from ort_qdq_plugin.errors import NotComputedError
from ort_qdq_plugin.folding.arithmetic import FUNCTIONS
from ort_qdq_plugin.fusion.computing import _RESULTS
from ort_qdq_plugin.report.weights import Reason
from tests.folding.support import (
    FLOATS,
    NUMPY,
    SMALL,
    all_elements,
    check_folding,
    check_left,
    code_of,
    expression_of,
    folding,
    refused_by_onnx_runtime,
    values_of,
)
from tests.fusion.test_rearranging import MOVING

INTEGERS = tuple(kind for kind in NUMPY if kind not in FLOATS)
node = helper.make_node

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def broadcast_shapes(draw: st.DrawFn, count: int) -> list[tuple[int, ...]]:
    shape = draw(shapes)
    return [
        tuple(1 if draw(st.booleans()) else size for size in shape[draw(st.integers(0, len(shape))) :]) for _ in range(count)
    ]


# Functions of elements


@pytest.mark.parametrize("op", sorted(FUNCTIONS))
@pytest.mark.parametrize("kind", NUMPY)
def test_functions_are_of_the_types_that_onnx_runtime_has_kernels_for(op: str, kind: str) -> None:
    function = FUNCTIONS[op]
    names = ["a", "b"][: min(function.most, 2)]
    model = folding([node(op, names, ["y"])], {name: (kind, np.ones(3)) for name in names})
    taken = code_of(kind) in function.types
    if refused_by_onnx_runtime(model, code_of(kind)):
        assert not taken
    else:
        assert taken or op == "Mod", "it could be folded"
    assert isinstance(expression_of(model), Reason) != taken


@settings(max_examples=250, deadline=None)
@given(
    op=st.sampled_from(sorted(set(FUNCTIONS) - {"Mod", "Div"})),
    kind=st.sampled_from(list(NUMPY)),
    shapes=broadcast_shapes(2),
    odd=st.booleans(),
    seed=st.integers(0, 99),
)
@example(op="Max", kind="float", shapes=[(2,), ()], odd=True, seed=59)  # zeros of both signs
def test_functions(op: str, kind: str, shapes: list[tuple[int, ...]], odd: bool, seed: int) -> None:
    if code_of(kind) not in FUNCTIONS[op].types:
        return
    names = ["a", "b"][: min(FUNCTIONS[op].most, 2)]
    odd = odd and op not in ("Add", "Sub", "Mul")  # of infinities, where it is no number
    tensors = {
        name: (kind, values_of(kind, shape, seed + at, odd))
        for at, (name, shape) in enumerate(zip("ab", shapes, strict=True))
    }
    check_folding([node(op, names, ["y"])], {name: tensors[name] for name in names})


@settings(max_examples=200, deadline=None)
@given(
    op=st.sampled_from(["Mod", "Div"]),
    kind=st.sampled_from(list(NUMPY)),
    shapes=broadcast_shapes(2),
    seed=st.integers(0, 99),
)
def test_division(op: str, kind: str, shapes: list[tuple[int, ...]], seed: int) -> None:
    if code_of(kind) not in FUNCTIONS[op].types:
        return
    dividend, divisor = (values_of(kind, shape, seed + at) for at, shape in enumerate(shapes))
    if kind in INTEGERS:
        divisor[divisor == 0] = 3
        divisor[divisor == np.asarray(-1).astype(divisor.dtype)] = 2
    check_folding([node(op, ["a", "b"], ["y"])], {"a": (kind, dividend), "b": (kind, divisor)})


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["uint8", "uint16", "uint32", "uint64"]),
    left=st.booleans(),
    shapes=broadcast_shapes(2),
    seed=st.integers(0, 99),
)
def test_shifts(kind: str, left: bool, shapes: list[tuple[int, ...]], seed: int) -> None:
    bits = values_of(kind, shapes[1], seed + 1) % np.array(int(kind[4:]), NUMPY[kind])
    direction = "LEFT" if left else "RIGHT"
    check_folding(
        [node("BitShift", ["a", "b"], ["y"], direction=direction)],
        {"a": (kind, values_of(kind, shapes[0], seed)), "b": (kind, bits)},
    )


@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize("count", [1, 3])
def test_of_any_number(op: str, count: int) -> None:
    names = "abc"[:count]
    check_folding(
        [node(op, list(names), ["y"])], {name: ("float", values_of("float", (4, 3), at)) for at, name in enumerate(names)}
    )


@pytest.mark.parametrize("base", FLOATS)
@pytest.mark.parametrize("exponent", ["float", "double", "int32", "int64", "float16"])
def test_powers_of_two(base: str, exponent: str) -> None:
    exponents = np.arange(-160, 140) if base != "float16" else np.arange(-26, 18)
    tensors = {"a": (base, np.array(2)), "b": (exponent, exponents)}
    if exponent == "float16" and base != "float16":
        check_left([node("Pow", ["a", "b"], ["y"])], tensors)
    else:
        check_folding([node("Pow", ["a", "b"], ["y"])], tensors)


def test_powers_that_are_left() -> None:
    check_left([node("Pow", ["a", "b"], ["y"])], {"a": ("float", np.array(3)), "b": ("float", np.arange(3))})
    check_left([node("Pow", ["b", "a"], ["y"])], {"a": ("float", np.array(2)), "b": ("float", np.arange(3))})


@pytest.mark.parametrize("source", [*NUMPY, *SMALL])
@pytest.mark.parametrize("target", [*NUMPY, *SMALL])
def test_casts(source: str, target: str) -> None:
    for seed in range(3):
        values = values_of(source, (5, 7), seed, odd=source in FLOATS and target in FLOATS)
        if source in FLOATS and target not in FLOATS:
            bits = int(target.lstrip("uint"))
            values = np.clip(values, 0, 1) if bits == 2 else np.clip(values, -8 if target[0] == "i" else 0, 7)
        elif target in SMALL:
            bits, signed = int(target.lstrip("uint")), target[0] == "i"
            values = values % (1 << (bits - signed if source[0] == "u" or signed else bits))
            values = values % 2 if source == "int2" else values % 8 if source == "int4" else values
        check_folding([node("Cast", ["a"], ["y"], to=code_of(target))], {"a": (source, values)})


@pytest.mark.parametrize("bounds", [("low", "high"), ("low", ""), ("", "high"), ("low",), (), ("high", "low")])
@pytest.mark.parametrize("kind", ["float", "double", "float16", "int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_clip(kind: str, bounds: tuple[str, ...]) -> None:
    # Where the bounds are the wrong way round, the greatest one counts.
    used = {name: (kind, np.array({"low": 2, "high": 5}[name])) for name in bounds if name}
    values = values_of(kind, (6, 5), 1, odd=True)
    check_folding([node("Clip", ["a", *bounds], ["y"])], {"a": (kind, values), **used})


def test_clips_that_are_left() -> None:
    for kind in ("int16", "uint16"):
        check_left([node("Clip", ["a", "a"], ["y"])], {"a": (kind, np.array(1))})
    check_left([node("Clip", ["a", "b"], ["y"])], {"a": ("float", np.ones(3)), "b": ("float", np.ones(1))})


# QuantizeLinear and DequantizeLinear


@st.composite
def linear(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
    """A shape, that of the scales, and the attributes."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple))
    axis = draw(st.integers(0, len(shape) - 1))
    how = draw(st.sampled_from(["one", "axis", "blocks"]))
    if how == "one":
        return shape, draw(st.sampled_from([(), (1,)])), {}
    counted = axis - len(shape) * draw(st.booleans())
    if how == "axis":
        return shape, (shape[axis],), {"axis": counted}
    block = draw(st.sampled_from([1, 2, 3, 16]))
    if len(shape) == 1 and block >= shape[0]:
        return shape, (1,), {}  # ONNX Runtime takes no single block of a vector
    return shape, (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :]), {"axis": counted, "block_size": block}


@settings(max_examples=250, deadline=None)
@given(
    form=linear(),
    kind=st.sampled_from(["float", "float16"]),
    zero=st.booleans(),
    seed=st.integers(0, 99),
    halves=st.booleans(),
    target=st.sampled_from(["int8", "uint8", "int16", "uint16", *SMALL]),
    opset=st.sampled_from([21, 23, 25]),
    in_float=st.booleans(),
)
@example(((9, 8), (9, 1), {"axis": 1, "block_size": 16}), "float", True, 0, True, "int4", 21, False)
def test_quantize(
    form: Any, kind: str, zero: bool, seed: int, halves: bool, target: str, opset: int, in_float: bool
) -> None:
    shape, of_scales, attributes = form
    rng = np.random.default_rng(seed)
    scales = 2.0 ** rng.integers(-6, 0, of_scales) if halves else rng.uniform(0.03, 0.2, of_scales)
    values = np.clip(values_of(kind, shape, seed), -1000, 1000)
    if halves:
        values = rng.integers(-600, 600, shape) / 256
    zero_points = values_of(target, of_scales, seed + 1)
    tensors = {"a": (kind, np.asarray(values)), "s": (kind, np.asarray(scales)), "z": (target, zero_points)}
    if not zero:
        tensors.pop("z")
        attributes = {**attributes, "output_dtype": code_of(target)}
    if in_float:
        attributes = {**attributes, "precision": code_of("float")}
        opset = 25
    opset = opset if target not in ("int2", "uint2") else 25
    check_folding([node("QuantizeLinear", list(tensors), ["y"], **attributes)], tensors, opset)


@settings(max_examples=200, deadline=None)
@given(
    form=linear(),
    kind=st.sampled_from(["float", "float16"]),
    zero=st.booleans(),
    seed=st.integers(0, 99),
    source=st.sampled_from(["int8", "uint8", "int16", "uint16", *SMALL]),
    result=st.sampled_from([None, "float", "float16"]),
)
def test_dequantize(form: Any, kind: str, zero: bool, seed: int, source: str, result: str | None) -> None:
    shape, of_scales, attributes = form
    scales = values_of(kind, of_scales, seed, odd=True)
    tensors = {
        "a": (source, values_of(source, shape, seed)),
        "s": (kind, scales),
        "z": (source, values_of(source, of_scales, seed + 1)),
    }
    if not zero:
        tensors.pop("z")
    if result is not None:
        attributes = {**attributes, "output_dtype": code_of(result)}
    check_folding([node("DequantizeLinear", list(tensors), ["y"], **attributes)], tensors)


@pytest.mark.parametrize("source", ["int8", "uint8", "int16", "uint16", "int32", *SMALL])
@pytest.mark.parametrize(("kind", "result"), [("float", "float"), ("float16", "float16"), ("float", "float16")])
def test_integers_of_all_values_by_odd_scales(source: str, kind: str, result: str) -> None:
    """Scales beyond the range of float16, subnormal in each type, and what is no number."""
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e-8, 1e-6, 700.0, 1e5, 3e38, -1.0])
    with np.errstate(over="ignore"):
        tensors = {"a": (source, values_of(source, (12, 700), 3)), "s": (kind, odd.astype(NUMPY[kind]))}
    if source != "int32":
        tensors["z"] = (source, values_of(source, (12,), 4))
    check_folding([node("DequantizeLinear", list(tensors), ["y"], axis=0, output_dtype=code_of(result))], tensors)


def test_zero_points_of_32_bits_are_left() -> None:
    tensors = {"a": ("int32", np.ones(3)), "s": ("float", np.array(1.0)), "z": ("int32", np.array(0))}
    check_left([node("DequantizeLinear", ["a", "s", "z"], ["y"])], tensors)


UNDEFINED: dict[str, tuple[list[NodeProto], dict[str, tuple[str, Any]]]] = {
    "Cast of what is no number": ([node("Cast", ["a"], ["y"], to=code_of("int8"))], {"a": ("float", [1, np.nan])}),
    "Cast of an infinity": ([node("Cast", ["a"], ["y"], to=code_of("int64"))], {"a": ("float", [1, np.inf])}),
    "Cast of what is too large": ([node("Cast", ["a"], ["y"], to=code_of("int64"))], {"a": ("float", [1, 2.0**63])}),
    "Cast to 4 bits": ([node("Cast", ["a"], ["y"], to=code_of("uint4"))], {"a": ("int8", [1, -1])}),
    "QuantizeLinear of no number": (
        [node("QuantizeLinear", ["a", "s"], ["y"])],
        {"a": ("float", [1, np.nan]), "s": ("float", 1.0)},
    ),
    "QuantizeLinear of an infinity": (
        [node("QuantizeLinear", ["a", "s"], ["y"])],
        {"a": ("float", [1, np.inf]), "s": ("float", 1.0)},
    ),
    "QuantizeLinear by zero": ([node("QuantizeLinear", ["a", "s"], ["y"])], {"a": ("float", [1, 0]), "s": ("float", 0.0)}),
    "Clip of no number": ([node("Clip", ["a", "s"], ["y"])], {"a": ("float", [1, np.nan]), "s": ("float", 0.0)}),
    "Max of no number": ([node("Max", ["a", "s"], ["y"])], {"a": ("float", [1, np.nan]), "s": ("float", 0.0)}),
    "Div by zero": ([node("Div", ["a", "s"], ["y"])], {"a": ("int32", [1, 2]), "s": ("int32", 0)}),
    "Div of the smallest": ([node("Div", ["a", "s"], ["y"])], {"a": ("int8", [-128, 2]), "s": ("int8", -1)}),
    "Mod by zero": ([node("Mod", ["a", "s"], ["y"])], {"a": ("uint8", [1, 2]), "s": ("uint8", 0)}),
    "BitShift by all bits": (
        [node("BitShift", ["a", "s"], ["y"], direction="LEFT")],
        {"a": ("uint8", [1]), "s": ("uint8", 8)},
    ),
    "Pow of half a number": ([node("Pow", ["s", "a"], ["y"])], {"a": ("float", [0.5]), "s": ("float", 2.0)}),
}


@pytest.mark.parametrize("form", UNDEFINED)
def test_what_is_not_the_same_everywhere_is_not_computed(form: str) -> None:
    expression = expression_of(folding(*UNDEFINED[form]))
    assert not isinstance(expression, Reason)
    with pytest.raises(NotComputedError):
        all_elements(expression)


def test_every_operator_is_tested() -> None:
    here = {"BitShift", "Cast", "Clip", "DequantizeLinear", "Pow", "QuantizeLinear"}
    assert set(_RESULTS) == here | set(FUNCTIONS) | {form.split("-")[0] for form in MOVING}
