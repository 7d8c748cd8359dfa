"""Random models, most of them valid: weights of all types, granularities and layouts, stored or computed, seen through
views, with one to three readers of all kinds, and stacks of them. Every choice is asked of a `random.Random`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, shape_inference

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import ELEMENTS, FLOATS, raw_float, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Zero
from conformance.fuzz.ways import way

__all__ = ["IDS", "drawn_model"]

IDS = "ids_"
"""What inputs are called whose values are indices, followed by the number of those that there are."""

_SIZES = (1, 2, 3, 5, 8, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96, 127, 128, 130, 160, 256, 257)
_BLOCKS = (8, 16, 16, 32, 32, 32, 48, 64, 128, 256, 512)
_ZEROS: tuple[Zero, ...] = ("none", "random", "random", "default")
_FACTORS = (1.0, 1.0, 0.5, -2.0, 0.1, 3.0, 2.0**-14, 2.0**-16, 6e4, 65530.0, 0.0)


class _Drawing(Draft):
    """A draft whose choices are those of `rng`."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__(str(dice.random()), opset=dice.choice((19, 21, 21, 21, 23)))
        self.dice = dice

    def chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def result(self, value: str, kind: str) -> None:
        """Makes a value an output of the model, of unknown shape."""
        self.output(value, None, kind)

    def dequantize(self, name: str, shape: Sequence[int], **given: Any) -> str:
        """As in other drafts, also with an operand that is `computed`: the integers, or if that is False the scales."""
        computed = given.pop("computed", None)
        output = super().dequantize(name, shape, **given)
        if computed is not None:
            node = self.nodes.pop()
            self._compute(node.input, 0 if computed else 1)
            self.nodes.append(node)
        return output

    def _compute(self, inputs: Any, at: int) -> None:
        """Puts nodes between a constant input of a node and that, which change nothing or but the numbers of scales."""
        value, half = inputs[at], self.dice.choice((0.5, 2.0))
        op = self.dice.choice(("Identity", "Transpose", "Unsqueeze", "Mul"))
        if op == "Unsqueeze":
            axes = [self.ints(f"{value}_axes", [0])]
            inputs[at] = self.node("Squeeze", [self.node("Unsqueeze", [value, *axes]), *axes])
        elif op == "Mul" and at:
            (code,) = {code for name, code in self._types() if name == value}
            kind = next(kind for kind, number in FLOATS.items() if number == code)
            factor = raw_tensor(f"{value}_f", code, [], raw_float(np.asarray(half), kind))
            inputs[at] = self.node("Mul", [value, self.constant(factor)])
        elif op == "Transpose":
            inputs[at] = self.node("Transpose", [self.node("Transpose", [value])])
        else:
            inputs[at] = self.node("Identity", [value])

    def _types(self) -> Iterator[tuple[str, int]]:
        yield from ((tensor.name, tensor.data_type) for tensor in self.initializers)
        constants = (node for node in self.nodes if node.op_type == "Constant")
        yield from ((node.output[0], node.attribute[0].t.data_type) for node in constants)

    def activation(self, shape: Sequence[int | str], kind: str) -> str:
        """Adds an input, at times behind a pair that quantizes it to 8 bits."""
        name = self.input(f"x{len(self.inputs)}", shape, kind)
        if kind != "float" or not self.chance(0.15):
            return name
        element = self.dice.choice(("uint8", "int8"))
        zero = np.uint8(128) if element == "uint8" else np.int8(0)
        scales = [
            self.constant(raw_tensor(f"{name}_s", TensorProto.FLOAT, [], np.float32(0.02).tobytes())),
            self.constant(raw_tensor(f"{name}_z", ELEMENTS[element].code, [], zero.tobytes())),
        ]
        quantized = self.node("QuantizeLinear", [name, *scales])
        return self.node("DequantizeLinear", [quantized, *scales])


def _dequantized(d: _Drawing, name: str, shape: Sequence[int], axis: int, like: str = "") -> tuple[str, str]:
    """A dequantized weight, with its scales along an axis or in blocks of it; its name and the type of its elements, which
    is another weight's if that is given."""
    dice = d.dice
    if not like and d.chance(0.15):
        return _written_out(d, name, shape, axis)
    element = dice.choice(("uint2", "int2", "uint4", "uint4", "int4", "int4", "uint8", "int8"))
    block = dice.choice((PER_CHANNEL, PER_TENSOR, *_BLOCKS, shape[axis]))
    scale = like or dice.choice(("float", "float", "float", "float16", "float16", "bfloat16"))
    more: dict[str, Any] = {}
    if block == PER_TENSOR and d.chance(0.5):
        more["scale_shape"] = [1]
    if block == PER_CHANNEL and d.chance(0.3):
        axis = dice.randrange(len(shape))
    kind = scale
    if d.opset >= 23 and not like and d.chance(0.3):
        kind = dice.choice(("float", "float16"))
        more["output_dtype"] = FLOATS[kind]
    if d.chance(0.1):
        more["scale_range"] = dice.choice(((1e-7, 1e-6), (1e-3, 2.0), (30.0, 300.0)))
    if d.chance(0.5):
        axis -= len(shape)
    zero = dice.choice(_ZEROS)
    if d.chance(0.2):
        more["computed"] = d.chance(0.5)
    return d.dequantize(name, shape, axis=axis, block=block, element=element, zero=zero, scale=scale, **more), kind


def _written_out(d: _Drawing, name: str, shape: Sequence[int], axis: int) -> tuple[str, str]:
    """The same by Cast, Sub and Mul. Blocks are an axis of their own."""
    dice, whole = d.dice, list(shape)
    element, kind = dice.choice(("uint8", "int8", "int8", *(("uint4", "int4") if d.opset >= 21 else ()))), "float"
    if d.chance(0.3):
        kind = "float16"
    divisors = [size for size in (8, 16, 32, 64) if not shape[axis] % size]
    block = dice.choice((PER_CHANNEL, PER_TENSOR, *divisors))
    granularity = [size if at == axis and not block else 1 for at, size in enumerate(shape)]
    value = d.node("Cast", [d.quantized(name, element, shape)], to=FLOATS[kind])
    if block > 0:
        granularity = [*shape[:axis], shape[axis] // block, 1, *shape[axis + 1 :]]
        in_blocks = [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]]
        value = d.node("Reshape", [value, d.ints(f"{name}_blocks", in_blocks)])
    while d.chance(0.3) and granularity[:1] == [1]:
        del granularity[0]  # broadcast all the same
    zero = dice.choice(("none", "none", "cast", "floats", "fraction"))
    if zero == "cast":
        value = d.node("Sub", [value, d.node("Cast", [d.quantized(f"{name}_z", element, granularity)], to=FLOATS[kind])])
    elif zero != "none":
        zeros = raw_float(np.full(granularity, dice.randrange(8) + 0.5 * (zero == "fraction")), kind)
        value = d.node("Sub", [value, d.constant(raw_tensor(f"{name}_z", FLOATS[kind], granularity, zeros))])
    operands = [value, d.floats(f"{name}_s", granularity, kind)]
    value = d.node("Mul", operands[:: dice.choice((1, -1))])
    return (d.node("Reshape", [value, d.ints(f"{name}_whole", whole)]) if block > 0 else value), kind


def _seen(d: _Drawing, value: str, kind: str, shape: list[int]) -> tuple[str, str, list[int]]:
    """A matrix behind views, and maybe others: what it is called then, its type and its shape."""
    for _ in range(d.dice.choice((0, 0, 1, 1, 2, 3))):
        view = d.dice.choice(("Transpose", "Transpose", "Identity", "Cast", "Reshape", "Squeeze"))
        if d.chance(0.2):
            value, shape = way(d, d.dice, value, kind, shape)
        elif view == "Transpose":
            value, shape = d.node("Transpose", [value], perm=list(reversed(range(len(shape))))), shape[::-1]
        elif view == "Identity":
            value = d.node("Identity", [value])
        elif view == "Cast":
            kind = d.dice.choice(("float", "float", "float16"))
            value = d.node("Cast", [value], to=FLOATS[kind])
        elif view == "Reshape":
            value = d.node("Reshape", [value, d.ints(f"{value}_shape", d.dice.choice((shape, [-1, shape[1]])))])
        else:
            wide = d.node("Unsqueeze", [value, d.ints(f"{value}_axes", [0])])
            value = d.node("Squeeze", [wide, d.ints(f"{wide}_axes", [0])])
    return value, kind, shape


def _bias(d: _Drawing, name: str, shape: Sequence[int], kind: str) -> str:
    values = d.rng.uniform(-1, 1, tuple(shape))
    return d.constant(raw_tensor(name, FLOATS[kind], shape, raw_float(np.asarray(values), kind)))


def _matmul(d: _Drawing, weight: str, kind: str, shape: list[int]) -> str:
    k, n = shape
    if d.chance(0.15):
        x = d.activation([n, d.dice.choice((1, 3))], kind)
        return d.node("MatMul", [weight, x])
    shapes: tuple[list[int | str], ...] = ([ROWS, k], [ROWS, k], [1, k], [k], [2, ROWS, k], [1, 2, 3, k], [40, k])
    x = d.activation(d.dice.choice(shapes), kind)
    value = d.node("MatMul", [x, weight])
    if d.chance(0.3):
        bias = _bias(d, f"{value}_b", d.dice.choice(([n], [n], [1], [])), kind)
        value = d.node("Add", [value, bias] if d.chance(0.5) else [bias, value])
    return value


def _gemm(d: _Drawing, weight: str, kind: str, shape: list[int]) -> str:
    given: dict[str, Any] = {}
    if d.chance(0.4):
        given["transB"] = int(d.chance(0.5))
    k, n = reversed(shape) if given.get("transB") else shape
    if d.chance(0.2):
        given["transA"] = 1
    if d.chance(0.3):
        given["alpha"] = d.dice.choice(_FACTORS)
    inputs = [d.activation([k, 3] if given.get("transA") else [ROWS, k], kind), weight]
    if d.chance(0.6):
        inputs.append(_bias(d, f"{weight}_c{len(d.nodes)}", d.dice.choice(([n], [n], [1, n], [1], [])), kind))
        if d.chance(0.3):
            given["beta"] = d.dice.choice(_FACTORS)
    return d.node("Gemm", inputs, **given)


def _gather(d: _Drawing, weight: str, kind: str, shape: list[int]) -> str:
    axis = d.dice.choice((0, 0, 0, 0, -2, 1))
    rows = shape[axis]
    indices = d.dice.choice(([], [1], [ROWS], [2, 3], [1, 2, 2]))
    ids = d.input(f"{IDS}{rows}_{len(d.inputs)}", indices, d.dice.choice(("int64", "int32")))
    given: dict[str, Any] = {"axis": axis} if axis or d.chance(0.5) else {}
    return d.node("Gather", [weight, ids], **given)


def _einsum(d: _Drawing, weight: str, kind: str, shape: list[int]) -> str:
    equation, left = d.dice.choice(
        (("bk,kn->bn", [3, shape[0]]), ("bn,kn->bk", [3, shape[1]]), ("kb,kn->nb", [shape[0], 3]))
    )
    return d.node("Einsum", [d.activation(left, kind), weight], equation=equation)


def _elementwise(d: _Drawing, weight: str, kind: str, shape: list[int]) -> str:
    return d.node(d.dice.choice(("Add", "Mul")), [d.activation([1, shape[1]], kind), weight])


_READERS: tuple[Callable[[_Drawing, str, str, list[int]], str], ...] = (
    _matmul, _matmul, _matmul, _gemm, _gemm, _gather, _gather, _einsum, _elementwise,
)  # fmt: skip


def _matrix(d: _Drawing) -> None:
    """A matrix with one reader or more."""
    shape = [d.dice.choice(_SIZES), d.dice.choice(_SIZES)]
    value, kind = _dequantized(d, "w", shape, d.dice.randrange(2))
    if d.chance(0.05):
        d.result(value, kind)
    for _ in range(d.dice.choice((1, 1, 1, 2, 3))):
        seen, type_seen, shape_seen = _seen(d, value, kind, shape)
        d.result(d.dice.choice(_READERS)(d, seen, type_seen, shape_seen), type_seen)


def _convolution(d: _Drawing) -> None:
    channels, filters, size = d.dice.choice((1, 3, 16, 32)), d.dice.choice((1, 4, 16)), d.dice.choice((1, 3))
    kind = d.dice.choice(("Conv", "ConvTranspose"))
    shape = [filters, channels, size, size] if kind == "Conv" else [channels, filters, size, size]
    value, data = _dequantized(d, "w", shape, d.dice.choice((0, 1)))
    inputs = [d.activation([1, channels, 5, 5], data), value]
    if d.chance(0.5):
        inputs.append(_bias(d, "b", [filters], data))
    d.result(d.node(kind, inputs), data)


def _recurrent(d: _Drawing) -> None:
    width, hidden = d.dice.choice((3, 16, 32)), d.dice.choice((4, 16))
    op, gates = d.dice.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    w, kind = _dequantized(d, "w", [1, gates * hidden, width], d.dice.choice((1, 2)))
    # A Cast to float16 in front of these is dropped by ONNX Runtime, unless it is that of a constant.
    r, _ = _dequantized(d, "r", [1, gates * hidden, hidden], d.dice.choice((1, 2)), kind)
    d.result(d.node(op, [d.activation([4, 1, width], kind), w, r], hidden_size=hidden), kind)


def _stack(d: _Drawing) -> None:
    """A stack of matrices, in a product with all of them, with one that is chosen at run time, or with a part."""
    count, k, n = d.dice.choice((1, 2, 3, 8)), d.dice.choice((16, 32, 64, 65)), d.dice.choice((8, 16, 33))
    value, kind = _dequantized(d, "w", [count, k, n], d.dice.choice((0, 1, 1, 2)))
    for _ in range(d.dice.choice((1, 1, 2))):
        seen, width, how = value, k, d.dice.choice(("all", "chosen", "part"))
        if d.chance(0.3):
            seen, width = d.node("Transpose", [seen], perm=[0, 2, 1]), n
        batch: list[int | str] = [d.dice.choice((1, count))] if d.chance(0.6) else []
        if how != "all":
            ids = d.input(f"{IDS}{count}_{len(d.inputs)}", d.dice.choice(([], [1])), "int64") if how == "chosen" else ""
            number = ids or d.ints(f"first{len(d.nodes)}", [d.dice.randrange(count)])
            seen, batch = d.node("Gather", [seen, number], axis=0), []
        d.result(d.node("MatMul", [d.activation([*batch, ROWS, width], kind), seen]), kind)


def drawn_model(dice: random.Random) -> bytes:
    """The next model, serialized."""
    d = _Drawing(dice)
    d.constant_nodes = d.chance(0.1)
    dice.choice((_matrix, _matrix, _matrix, _matrix, _matrix, _stack, _convolution, _recurrent))(d)
    model = d.model()
    if d.chance(0.3):
        model = shape_inference.infer_shapes(model)  # which states the types and shapes of all values
    if d.chance(0.1):
        _put_into_branches(model)
    return bytes(model.SerializeToString())


def _put_into_branches(model: Any) -> None:
    """Put the nodes into both branches of an If."""
    graph, branches = model.graph, []
    own = [value.name for value in graph.output]
    for name in ("then", "else"):
        nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
        renamed = {output: f"{output}_{name}" for node in nodes for output in node.output}
        for node in nodes:
            node.input[:] = [renamed.get(each, each) for each in node.input]
            node.output[:] = [renamed[each] for each in node.output]
        outputs = [type(value).FromString(value.SerializeToString()) for value in graph.output]
        for output in outputs:
            output.name = renamed[output.name]
        branches.append(helper.make_graph(nodes, name, [], outputs))
    del graph.node[:]
    graph.node.append(helper.make_node("If", ["chosen"], own, "if", then_branch=branches[0], else_branch=branches[1]))
    graph.input.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, []))
