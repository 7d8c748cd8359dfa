"""Models below 1 MB that are made to cost seconds or hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Callable
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


def with_graph(graph: bytes, model: onnx.ModelProto | None = None) -> bytes:
    """A serialized model whose graph gets these bytes as well."""
    model = model or linear(SMALL)
    graph = model.graph.SerializeToString() + graph
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + field(7, graph)


def with_product(draft: Draft, dequantized: str, output: str = "y") -> onnx.ModelProto:
    draft.input("x", ["m", SMALL.k])
    draft.output(draft.node("MatMul", ["x", dequantized], output), ["m", SMALL.n])
    return draft.model()


def dims(at: int, *sizes: int) -> bytes:
    model = linear(SMALL)
    model.graph.initializer[at].dims[:] = sizes
    return bytes(model.SerializeToString())


def with_functions(bodies: dict[str, list[onnx.NodeProto]], calls: int = 1) -> bytes:
    """A weight that goes through the first of these functions of one input and output, `a` and `b`."""
    draft = Draft("functions")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    draft.functions = [helper.make_function("local", name, ["a"], ["b"], body, opsets) for name, body in bodies.items()]
    dequantized = draft.weight(SMALL)
    for number in range(calls):
        draft.node(next(iter(bodies)), [dequantized], f"called{number}", domain="local")
    return bytes(with_product(draft, "called0").SerializeToString())


def call(name: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node(name, [source], [target], domain="local")


def laughs() -> bytes:
    """30 functions, each of which calls the next one twice."""
    bodies = {f"f{level}": [call(f"f{level + 1}", "a", "c"), call(f"f{level + 1}", "c", "b")] for level in range(29)}
    return with_functions({**bodies, "f29": [helper.make_node("Neg", ["a"], ["b"])]})


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


def chained(op: str, count: int, in_front: bool = False) -> bytes:
    """One node after another, behind DequantizeLinear or in front of it."""
    draft = Draft("chain")
    value = draft.weight(Weight(k=16, n=16, block=16))
    dequantize = draft.nodes.pop()
    if in_front:
        value = dequantize.input[0]
        for number in range(count):
            value = draft.node(op, [value], f"c{number}")
        dequantize.input[0] = value
        draft.nodes.append(dequantize)
        value = dequantize.output[0]
    else:
        draft.nodes.append(dequantize)
        for number in range(count):
            value = draft.node(op, [value], f"c{number}")
    draft.input("x", ["m", 16])
    draft.output(draft.node("MatMul", ["x", value], "y"), ["m", 16])
    return bytes(draft.model().SerializeToString())


def shared(count: int = MANY, change: Callable[[onnx.ModelProto], None] | None = None, **weight: Any) -> bytes:
    """Many DequantizeLinear of the same operands, one of which is multiplied."""
    draft = Draft("shared")
    draft.typed_data = weight.pop("typed_data", False)
    drawn = Weight(**{"k": 32, "n": 16, **weight})
    dequantized = draft.weight(drawn)
    attributes = {attr.name: attr.i for attr in draft.nodes[0].attribute}
    for number in range(count):
        draft.node("DequantizeLinear", list(draft.nodes[0].input), f"d{number}", **attributes)
    draft.input("x", ["m", drawn.k])
    draft.output(draft.node("MatMul", ["x", dequantized], "y"), ["m", drawn.n])
    model = draft.model()
    if change is not None:
        change(model)
    return bytes(model.SerializeToString())


def many_readers() -> bytes:
    draft = Draft("readers")
    dequantized = draft.weight(SMALL)
    for number in range(2 * MANY):
        draft.node("MatMul", ["x", dequantized], f"p{number}")
    return bytes(with_product(draft, dequantized).SerializeToString())


def many_products() -> bytes:
    draft = Draft("products")
    dequantized = draft.weight(SMALL)
    operands = list(draft.nodes[0].input)
    for number in range(6000):
        other = draft.node("DequantizeLinear", operands, f"d{number}", axis=0, block_size=32)
        draft.node("MatMul", ["x", other], f"p{number}")
    return bytes(with_product(draft, dequantized).SerializeToString())


def identities_shared_by_all() -> bytes:
    draft = Draft("identities")
    draft.weight(SMALL)
    first = draft.nodes.pop()
    value = first.input[0]
    for number in range(5000):
        value = draft.node("Identity", [value], f"c{number}")
    for number in range(5000):
        draft.node("DequantizeLinear", [value, *first.input[1:]], f"d{number}", axis=0, block_size=32)
    return bytes(with_product(draft, "d0").SerializeToString())


def constant_with_many_attributes() -> bytes:
    draft = Draft("constant")
    draft.nodes.append(helper.make_node("Constant", [], ["s"], value_float=0.5))
    draft.nodes[0].attribute.extend([helper.make_attribute("a", 1)] * 50_000)
    draft.quantized("w", "uint8", SMALL.shape)
    for number in range(5000):
        draft.node("DequantizeLinear", ["w", "s"], f"d{number}")
    return bytes(with_product(draft, "d0").SerializeToString())


def views_of_many_axes() -> bytes:
    draft = Draft("views")
    dequantized = draft.weight(SMALL)
    draft.ints("shape", [1] * 80_000 + list(SMALL.shape))
    for number in range(4000):
        draft.node("Reshape", [dequantized, "shape"], f"r{number}")
    return bytes(with_product(draft, dequantized).SerializeToString())


def permutation_of_many_axes() -> bytes:
    draft = Draft("permutation")
    transposed = draft.node("Transpose", [draft.weight(SMALL)], "t", perm=list(range(100_000)))
    return bytes(with_product(draft, transposed).SerializeToString())


def weight_of_many_axes() -> bytes:
    draft = Draft("axes")
    shape = [1] * 300_000 + list(SMALL.shape)
    tensor = TensorProto(name="w", data_type=TensorProto.UINT4, dims=shape, raw_data=bytes(SMALL.k * SMALL.n // 2))
    draft.constant(tensor)
    draft.floats("s", [])
    for number in range(4000):
        draft.node("DequantizeLinear", ["w", "s"], f"d{number}")
    return bytes(with_product(draft, "d0").SerializeToString())


def biases(count: int = 3000) -> bytes:
    """A scalar that would become a row of 3 million for each product."""
    draft = Draft("biases")
    draft.constant(TensorProto(name="w", data_type=TensorProto.UINT2, dims=[1, 3_000_000], raw_data=bytes(750_000)))
    draft.floats("s", [])
    draft.floats("b", [1])
    draft.opset = 25
    draft.node("DequantizeLinear", ["w", "s"], "d")
    draft.input("x", ["m", 1])
    for number in range(count):
        draft.node("Gemm", ["x", "d", "b"], f"y{number}", beta=2.0)
    draft.output("y0", ["m", 3_000_000])
    return bytes(draft.model().SerializeToString())


def scaled_again_and_again() -> bytes:
    """One weight of 260 KB, in thousands of products that each want it multiplied by another number."""
    draft = Draft("alphas")
    dequantized = draft.weight(Weight(k=512, n=1024))
    for number in range(9000):
        draft.node("Gemm", ["x", dequantized], f"y{number}", alpha=1 + number / 1000)
    draft.input("x", ["m", 512])
    draft.output("y0", ["m", 1024])
    return bytes(draft.model().SerializeToString())


def blocks(size: int) -> bytes:
    draft = Draft("blocks")
    dequantized = draft.dequantize("w", [1, 64], axis=0, block=size, scale_shape=[1, 64])
    draft.input("x", ["m", 1])
    draft.output(draft.node("MatMul", ["x", dequantized], "y"), ["m", 64])
    return bytes(draft.model().SerializeToString())


def nested(innermost: list[onnx.NodeProto], depth: int = 25) -> bytes:
    """Nodes in a branch in a branch and so on."""
    nodes = [*innermost, helper.make_node("Identity", ["x"], [f"o{depth}"])]
    for level in reversed(range(depth)):
        output = helper.make_tensor_value_info(f"o{level + 1}", TensorProto.FLOAT, None)
        branch = helper.make_graph(nodes, "branch", [], [output])
        nodes = [helper.make_node("If", ["c"], [f"o{level}"], then_branch=branch)]
    draft = Draft("nested")
    draft.input("c", [], "bool")
    dequantized = draft.weight(SMALL)
    draft.nodes += nodes
    return bytes(with_product(draft, dequantized).SerializeToString())


def constants_among_nodes() -> bytes:
    draft = Draft("constants")
    dequantized = draft.weight(SMALL)
    draft.nodes += [helper.make_node("N", [], [])] * 70_000
    value = TensorProto(data_type=TensorProto.UINT8, dims=[LARGE_TENSOR_BYTES], raw_data=bytes(LARGE_TENSOR_BYTES))
    draft.nodes += [helper.make_node("Constant", [], [f"c{number}"], value=value) for number in range(100)]
    return bytes(with_product(draft, dequantized).SerializeToString())


def unknown_ranks() -> bytes:
    draft = Draft("ranks")
    dequantized = draft.weight(SMALL)
    for number in range(MANY):
        draft.node("MatMul", [dequantized, f"unknown{number}"], f"p{number}")
    model = with_product(draft, dequantized)
    model.graph.value_info.extend(
        helper.make_tensor_value_info(f"v{number}", TensorProto.FLOAT, [1]) for number in range(20_000)
    )
    return bytes(model.SerializeToString())


def extra_values(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].int32_data.append(1)


def long_offset(model: onnx.ModelProto) -> None:
    external_tensor(model, "w", location="model.data", offset="9" * 400_000)


def long_location(model: onnx.ModelProto) -> None:
    external_tensor(model, "w", location="a/" * 200_000)


def long_name(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = model.graph.node[0].input[0] = "w" * 100_000


EMPTY = 450_000

HOSTILE: dict[str, Callable[[], bytes]] = {
    "weight-of-100000-dims": lambda: dims(0, *[2**62] * 100_000),
    "scales-of-100000-dims": lambda: dims(1, *[2**62] * 100_000),
    "one-dim-of-many-is-0": lambda: dims(0, *[2**62] * 50_000, 0, *[2**62] * 49_000),
    "negative-dims": lambda: dims(0, *[-(2**62)] * 90_000),
    "64-dims-of-2**62": lambda: dims(0, *[2**62] * 64),
    "weight-of-many-axes": weight_of_many_axes,
    "views-of-many-axes": views_of_many_axes,
    "permutation-of-many-axes": permutation_of_many_axes,
    "function-laughs": laughs,
    "function-recursive": lambda: with_functions({"f": [call("f", "a", "b")]}),
    "functions-mutually-recursive": lambda: with_functions({"f": [call("g", "a", "b")], "g": [call("f", "a", "b")]}),
    "functions-in-a-chain": lambda: with_functions(
        {
            **{f"f{at}": [call(f"f{at + 1}", "a", "b")] for at in range(5000)},
            "f5000": [helper.make_node("Neg", ["a"], ["b"])],
        }
    ),
    "function-long": long_function,
    "function-large-attribute": large_attribute_in_function,
    "empty-nodes": lambda: with_graph(field(1, b"") * EMPTY),
    "empty-initializers": lambda: with_graph(field(5, b"") * EMPTY),
    "empty-inputs": lambda: with_graph(field(11, b"") * EMPTY),
    "empty-outputs": lambda: with_graph(field(12, b"") * EMPTY),
    "empty-value-infos": lambda: with_graph(field(13, b"") * EMPTY),
    "empty-sparse-initializers": lambda: with_graph(field(15, b"") * EMPTY),
    "empty-attributes": lambda: with_graph(field(1, field(4, b"If") + field(5, b"") * EMPTY)),
    "empty-graphs": lambda: with_graph(field(1, field(4, b"If") + field(5, field(11, b"") * EMPTY))),
    "empty-graphs-one-by-one": lambda: with_graph(field(1, field(4, b"If") + field(5, field(6, b""))) * 100_000),
    "empty-tensors": lambda: with_graph(field(1, field(4, b"If") + field(5, field(10, b"") * EMPTY))),
    "empty-functions": lambda: linear(SMALL).SerializeToString() + field(25, b"") * 300_000,
    "empty-metadata": lambda: linear(SMALL).SerializeToString() + field(14, b"") * EMPTY,
    "empty-external-data": lambda: shared(
        100, lambda model: void(model.graph.initializer[0].MergeFromString(field(13, b"") * EMPTY + b"\x70\x01"))
    ),
    "typed-data-shared": lambda: shared(typed_data=True, k=4096, block=16, element="uint8", zero="default"),
    "typed-data-shared-too-long": lambda: shared(
        change=extra_values, typed_data=True, k=4096, block=16, element="uint8", zero="default"
    ),
    "zero-points-shared": lambda: shared(k=2048, n=64, block=16, element="uint8", zero="default"),
    "offset-long": lambda: shared(change=long_offset),
    "location-long": lambda: shared(change=long_location),
    "name-long": lambda: shared(change=long_name),
    "many-dequantize-linear": shared,
    "many-products": many_products,
    "many-readers": many_readers,
    "identities-behind": lambda: chained("Identity", 15_000),
    "transposes-behind": lambda: chained("Transpose", 15_000),
    "identities-in-front": lambda: chained("Identity", 15_000, in_front=True),
    "identities-shared": identities_shared_by_all,
    "constant-with-many-attributes": constant_with_many_attributes,
    "constants-among-many-nodes": constants_among_nodes,
    "deep-products": lambda: nested([helper.make_node("MatMul", ["x", "w_d"], [f"p{at}"]) for at in range(10_000)]),
    "deep-unknown-names": lambda: nested([helper.make_node("MatMul", ["x", "u"], [f"p{at}"]) for at in range(10_000)]),
    "unknown-ranks": unknown_ranks,
    "scalar-bias": biases,
    "scaled-again-and-again": scaled_again_and_again,
    "block-of-2**40": lambda: blocks(2**40),
    "block-of-2**62": lambda: blocks(2**62),
}


def void(_: object) -> None:
    return None
