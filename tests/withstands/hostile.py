"""Models below 1 MB that are made to cost seconds or hundreds of megabytes."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import onnx
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from tests.support import external_tensor, field, linear

__all__ = ["HOSTILE", "SMALL", "dims", "with_graph"]

SMALL = Weight(k=32, n=16)
MANY = 8000
EMPTY = 450_000


def with_graph(graph: bytes, model: onnx.ModelProto | None = None) -> bytes:
    """A serialized model whose graph gets these bytes as well."""
    model = model or linear(SMALL)
    graph = model.graph.SerializeToString() + graph
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + field(7, graph)


def dims(at: int, *sizes: int) -> bytes:
    """A weight, its scales or its zero points of this shape."""
    model = linear(SMALL)
    model.graph.initializer[at].dims[:] = sizes
    return bytes(model.SerializeToString())


def product(draft: Draft, dequantized: str, weight: Weight = SMALL) -> onnx.ModelProto:
    """What was drawn, with x @ dequantized behind it."""
    draft.input("x", ["m", weight.k])
    draft.output(draft.node("MatMul", ["x", dequantized], "y"), ["m", weight.n])
    return draft.model()


def drawn(draw: Callable[[Draft, str], str | None], weight: Weight = SMALL, *, without_node: bool = False) -> bytes:
    """A weight, whatever is drawn behind it, and a product of the output that is given back, or of the weight."""
    draft = Draft("hostile")
    dequantized = draft.weight(weight)
    if without_node:
        draft.nodes.clear()
    return bytes(product(draft, draw(draft, dequantized) or dequantized, weight).SerializeToString())


def with_functions(bodies: dict[str, Sequence[onnx.NodeProto]], calls: int = 1) -> bytes:
    """A weight that goes through the first of these functions of one input and output, `a` and `b`."""

    def draw(draft: Draft, dequantized: str) -> str:
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
        draft.functions = [helper.make_function("local", name, ["a"], ["b"], body, opsets) for name, body in bodies.items()]
        for number in range(calls):
            draft.node(next(iter(bodies)), [dequantized], f"called{number}", domain="local")
        return "called0"

    return drawn(draw)


def call(name: str, source: str = "a", target: str = "b") -> onnx.NodeProto:
    return helper.make_node(name, [source], [target], domain="local")


NEGATED = [helper.make_node("Neg", ["a"], ["b"])]


def laughs() -> bytes:
    """30 functions, each of which calls the next one twice."""
    bodies = {f"f{level}": [call(f"f{level + 1}", "a", "c"), call(f"f{level + 1}", "c", "b")] for level in range(29)}
    return with_functions({**bodies, "f29": NEGATED})


def long_function() -> bytes:
    names = ["a", *(f"n{number}" for number in range(2999)), "b"]
    body = [helper.make_node("Neg", [source], [target]) for source, target in pairwise(names)]
    return with_functions({"f": body}, calls=3000)


def large_attribute_in_function() -> bytes:
    """An attribute of 200 KB that the function's body refers to 2000 times."""
    body = [helper.make_node("Constant", [], [f"c{number}"]) for number in range(2000)]
    for node in body:
        node.attribute.add(name="value_ints", ref_attr_name="given", type=onnx.AttributeProto.INTS)
    model = onnx.ModelProto.FromString(with_functions({"f": [*body, helper.make_node("Identity", ["a"], ["b"])]}))
    model.functions[0].attribute.append("given")
    model.graph.node[1].attribute.append(helper.make_attribute("given", [1] * 200_000))
    return bytes(model.SerializeToString())


def chained(op: str, count: int = 15_000, *, readers: int = 0) -> bytes:
    """One node after another behind DequantizeLinear; with readers, in front of so many of it."""

    def draw(draft: Draft, value: str) -> str | None:
        first = draft.nodes.pop() if readers else None
        value = first.input[0] if first else value
        for number in range(count):
            value = draft.node(op, [value], f"c{number}")
        for number in range(readers):
            assert first is not None
            draft.node("DequantizeLinear", [value, *first.input[1:]], f"d{number}", axis=0, block_size=weight.block)
        return "d0" if readers else value

    weight = SMALL if readers > 1 else Weight(k=16, n=16, block=16)
    return drawn(draw, weight)


def shared(count: int = MANY, change: Callable[[onnx.ModelProto], Any] | None = None, **weight: Any) -> bytes:
    """Many DequantizeLinear of the same operands, one of which is multiplied."""
    draft = Draft("shared")
    draft.typed_data = weight.pop("typed_data", False)
    of = Weight(**{"k": 32, "n": 16, **weight})
    dequantized = draft.weight(of)
    attributes = {attr.name: attr.i for attr in draft.nodes[0].attribute}
    for number in range(count):
        draft.node("DequantizeLinear", list(draft.nodes[0].input), f"d{number}", **attributes)
    model = product(draft, dequantized, of)
    if change is not None:
        change(model)
    return bytes(model.SerializeToString())


def each(count: int, *nodes: tuple[Any, ...], **attributes: Any) -> Callable[[Draft, str], None]:
    """So many times these nodes: their type, their inputs, and what their outputs' names begin with."""

    def draw(draft: Draft, dequantized: str) -> None:
        for number in range(count):
            for op, names, output, *rest in nodes:
                inputs = [dequantized if name == "W" else name.format(number) for name in names]
                draft.node(op, inputs, f"{output}{number}", **(rest[0] if rest else attributes))

    return draw


MANY_PRODUCTS = each(
    6000, ("DequantizeLinear", ["w", "w_s", "w_z"], "d", {"axis": 0, "block_size": 32}), ("MatMul", ["x", "d{}"], "p")
)


def constant_with_many_attributes(draft: Draft, _: str) -> str:
    draft.nodes.append(helper.make_node("Constant", [], ["s"], value_float=0.5))
    draft.nodes[-1].attribute.extend([helper.make_attribute("a", 1)] * 50_000)
    each(5000, ("DequantizeLinear", ["w", "s"], "d"))(draft, "")
    return "d0"


def views_of_many_axes(draft: Draft, dequantized: str) -> None:
    draft.ints("shape", [1] * 80_000 + list(SMALL.shape))
    each(4000, ("Reshape", ["W", "shape"], "r"))(draft, dequantized)


def weight_of_many_axes(draft: Draft, _: str) -> str:
    draft.initializers.clear()
    shape = [1] * 300_000 + list(SMALL.shape)
    draft.constant(TensorProto(name="w", data_type=TensorProto.UINT4, dims=shape, raw_data=bytes(SMALL.k * SMALL.n // 2)))
    draft.floats("s", [])
    each(4000, ("DequantizeLinear", ["w", "s"], "d"))(draft, "")
    return "d0"


def split_and_joined(draft: Draft, _: str) -> str:
    """4000 parts of a weight, joined in each of 40 ways."""
    parts = [f"p{number}" for number in range(4000)]
    wide = draft.dequantize("v", [32, len(parts)], axis=1, block=0, element="int8")
    draft.nodes.append(helper.make_node("Split", [wide], parts, "split", axis=1, num_outputs=len(parts)))
    for at in range(40):
        draft.node("MatMul", ["x", draft.node("Concat", parts[at * 100 : at * 100 + 100], axis=1)])
    return draft.node("Concat", parts[:16], axis=1)


def multiplied_again_and_again(draft: Draft, value: str) -> str:
    """A hundred times, and then in each of 2000 products."""
    factor = draft.floats("f", [32, 1])
    for _ in range(100):
        value = draft.node("Mul", [value, factor])
    for _ in range(2000):
        draft.node("MatMul", ["x", value])
    return value


def taken_apart(draft: Draft, dequantized: str) -> None:
    """4096 columns of a weight in another order, for each of 3000 products."""
    wide = draft.dequantize("v", [32, 4096], axis=1, block=0, element="int8")
    order = draft.ints("order", [number * 7 % 4096 for number in range(4096)])
    for _ in range(3000):
        draft.node("MatMul", ["x", draft.node("Gather", [wide, order], axis=1)])


def written_out_and_joined(draft: Draft, _: str) -> None:
    """2000 weights that are written out, joined for 2000 nodes that take no weights."""
    draft.quantized("v", "int8", [32, 16])
    draft.node("Cast", ["v"], "c", to=TensorProto.FLOAT)
    factor = draft.floats("f", [16])
    joint = draft.node("Concat", [draft.node("Mul", ["c", factor]) for _ in range(2000)], axis=1)
    each(2000, ("Relu", [joint], "r"))(draft, "")


def stacks_in_many_products(draft: Draft, dequantized: str) -> None:
    """256 matrices of 16 by 16, and 32 to choose from, each in 100 products."""
    draft.input("chosen", [1], "int64")
    draft.input("each", [256, "m", 16])
    all_of_them = draft.dequantize("v", [256, 16, 16], axis=1, block=16)
    some = draft.dequantize("u", [32, 32, 16], axis=1, block=16)
    for _ in range(100):
        draft.node("MatMul", ["each", all_of_them])
        draft.node("MatMul", ["x", draft.node("Gather", [some, "chosen"])])


def biases() -> bytes:
    """A scalar that would become a row of 3 million for each product."""
    draft = Draft("biases", opset=25)
    draft.constant(TensorProto(name="w", data_type=TensorProto.UINT2, dims=[1, 3_000_000], raw_data=bytes(750_000)))
    draft.floats("s", [])
    draft.floats("b", [1])
    draft.node("DequantizeLinear", ["w", "s"], "d")
    draft.input("x", ["m", 1])
    each(3000, ("Gemm", ["x", "d", "b"], "y"), beta=2.0)(draft, "")
    draft.output("y0", ["m", 3_000_000])
    return bytes(draft.model().SerializeToString())


def scaled_again_and_again(draft: Draft, dequantized: str) -> None:
    """A weight of 260 KB, in thousands of products that each want it multiplied by another number."""
    for number in range(9000):
        draft.node("Gemm", ["x", dequantized], f"y{number}", alpha=1 + number / 1000)


def blocks(size: int) -> bytes:
    draft = Draft("blocks")
    dequantized = draft.dequantize("w", [1, 64], axis=0, block=size, scale_shape=[1, 64])
    return bytes(product(draft, dequantized, Weight(k=1, n=64)).SerializeToString())


def nested(operand: str, depth: int = 25) -> bytes:
    """10,000 products in a branch in a branch and so on."""
    nodes = [helper.make_node("MatMul", ["x", operand], [f"p{at}"]) for at in range(10_000)]
    nodes.append(helper.make_node("Identity", ["x"], [f"o{depth}"]))
    for level in reversed(range(depth)):
        output = helper.make_tensor_value_info(f"o{level + 1}", TensorProto.FLOAT, None)
        branch = helper.make_graph(nodes, "branch", [], [output])
        nodes = [helper.make_node("If", ["c"], [f"o{level}"], then_branch=branch)]

    def draw(draft: Draft, _: str) -> None:
        draft.input("c", [], "bool")
        draft.nodes += nodes

    return drawn(draw)


def constants_among_nodes(draft: Draft, _: str) -> None:
    draft.nodes += [helper.make_node("N", [], [])] * 70_000
    value = TensorProto(data_type=TensorProto.UINT8, dims=[LARGE_TENSOR_BYTES], raw_data=bytes(LARGE_TENSOR_BYTES))
    draft.nodes += [helper.make_node("Constant", [], [f"c{number}"], value=value) for number in range(100)]


def unknown_ranks(draft: Draft, dequantized: str) -> None:
    each(MANY, ("MatMul", ["W", "unknown{}"], "p"))(draft, dequantized)
    for number in range(20_000):
        draft.declare(f"v{number}", [1])


def long_name(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = model.graph.node[0].input[0] = "w" * 100_000


def empty_list(number: int) -> bytes:
    return with_graph(field(number, b"") * EMPTY)


def in_node(*fields: bytes) -> bytes:
    """A node `If` with these bytes as an attribute."""
    return with_graph(field(1, field(4, b"If") + b"".join(fields)))


# Field numbers of GraphProto: a list of so many messages without content.
LISTS = {"nodes": 1, "initializers": 5, "inputs": 11, "outputs": 12, "value-infos": 13, "sparse-initializers": 15}
TYPED: dict[str, Any] = {"typed_data": True, "k": 4096, "block": 16, "element": "uint8", "zero": "default"}

HOSTILE: dict[str, Callable[[], bytes]] = {
    "weight-of-100000-dims": lambda: dims(0, *[2**62] * 100_000),
    "scales-of-100000-dims": lambda: dims(1, *[2**62] * 100_000),
    "one-dim-of-many-is-0": lambda: dims(0, *[2**62] * 50_000, 0, *[2**62] * 49_000),
    "negative-dims": lambda: dims(0, *[-(2**62)] * 90_000),
    "64-dims-of-2**62": lambda: dims(0, *[2**62] * 64),
    "weight-of-many-axes": lambda: drawn(weight_of_many_axes, without_node=True),
    "views-of-many-axes": lambda: drawn(views_of_many_axes),
    "permutation-of-many-axes": lambda: drawn(
        lambda draft, value: draft.node("Transpose", [value], "t", perm=list(range(100_000)))
    ),
    "function-laughs": laughs,
    "function-recursive": lambda: with_functions({"f": [call("f")]}),
    "functions-mutually-recursive": lambda: with_functions({"f": [call("g")], "g": [call("f")]}),
    "functions-in-a-chain": lambda: with_functions(
        {**{f"f{at}": [call(f"f{at + 1}")] for at in range(5000)}, "f5000": NEGATED}
    ),
    "function-long": long_function,
    "function-large-attribute": large_attribute_in_function,
    **{f"empty-{name}": partial(empty_list, number) for name, number in LISTS.items()},
    "empty-attributes": lambda: in_node(field(5, b"") * EMPTY),
    "empty-graphs": lambda: in_node(field(5, field(11, b"") * EMPTY)),
    "empty-graphs-one-by-one": lambda: with_graph(field(1, field(4, b"If") + field(5, field(6, b""))) * 100_000),
    "empty-tensors": lambda: in_node(field(5, field(10, b"") * EMPTY)),
    "empty-functions": lambda: linear(SMALL).SerializeToString() + field(25, b"") * 300_000,
    "empty-metadata": lambda: linear(SMALL).SerializeToString() + field(14, b"") * EMPTY,
    "empty-external-data": lambda: shared(
        100, lambda model: model.graph.initializer[0].MergeFromString(field(13, b"") * EMPTY + b"\x70\x01")
    ),
    "typed-data-shared": lambda: shared(**TYPED),
    "typed-data-shared-too-long": lambda: shared(
        change=lambda model: model.graph.initializer[0].int32_data.append(1), **TYPED
    ),
    "zero-points-shared": lambda: shared(k=2048, n=64, block=16, element="uint8", zero="default"),
    "offset-long": lambda: shared(
        change=lambda model: external_tensor(model, "w", location="model.data", offset="9" * 400_000)
    ),
    "location-long": lambda: shared(change=lambda model: external_tensor(model, "w", location="a/" * 200_000)),
    "name-long": lambda: shared(change=long_name),
    "many-dequantize-linear": shared,
    "many-products": lambda: drawn(MANY_PRODUCTS),
    "many-readers": lambda: drawn(each(2 * MANY, ("MatMul", ["x", "W"], "p"))),
    "identities-behind": lambda: chained("Identity"),
    "transposes-behind": lambda: chained("Transpose"),
    "identities-in-front": lambda: chained("Identity", readers=1),
    "identities-shared": lambda: chained("Identity", 5000, readers=5000),
    "constant-with-many-attributes": lambda: drawn(constant_with_many_attributes, without_node=True),
    "constants-among-many-nodes": lambda: drawn(constants_among_nodes),
    "split-and-joined": lambda: drawn(split_and_joined),
    "multiplied-again-and-again": lambda: drawn(multiplied_again_and_again),
    "written-out-and-joined": lambda: drawn(written_out_and_joined),
    "taken-apart": lambda: drawn(taken_apart),
    "stacks-in-many-products": lambda: drawn(stacks_in_many_products),
    "deep-products": lambda: nested("w_d"),
    "deep-unknown-names": lambda: nested("u"),
    "unknown-ranks": lambda: drawn(unknown_ranks),
    "scalar-bias": biases,
    "scaled-again-and-again": lambda: drawn(scaled_again_and_again, Weight(k=512, n=1024)),
    "block-of-2**40": lambda: blocks(2**40),
    "block-of-2**62": lambda: blocks(2**62),
}
