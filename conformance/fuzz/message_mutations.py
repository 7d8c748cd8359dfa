"""Mutations of a parsed model: what a malicious or a careless writer could have put there."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from conformance.drawing.canvas import graphs_of
from conformance.drawing.elements import MS

__all__ = ["MESSAGE_MUTATIONS", "Random"]

_LOCATIONS = (
    "model.data", "./model.data", "sub/../model.data", "link.data", "leaving.data", "sub", "fifo", "zero", "missing",
    "../outside.data", "/dev/zero", "/proc/self/mem", "model.onnx", "a\0b", "x" * 5000, "", ".", "..",
)  # fmt: skip
"""External data locations, among them all that `beside_a_model` of `mutate` makes."""
_SIZES = (
    -(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 256,
    512, 1024, 4096, 2**16, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**40, 2**62, 2**63 - 1,
)  # fmt: skip
_NUMBERS = (
    *map(str, (*_SIZES, 2**63, 2**64 - 1, 2**64)), "9" * 30, "0x10", "1e3", " 4", "4 ", "+4", "4.0", "", "-0", "٤",
)  # fmt: skip
_OPERATORS = (
    "DequantizeLinear", "QuantizeLinear", "MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "Gather", "GatherBlockQuantized",
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Add", "Mul", "Relu", "Constant", "If",
    "Loop", "Scan", "NoSuchOperator",
)  # fmt: skip
_DOMAINS = ("", "ai.onnx", MS, "local", "ai.onnx.ml")
_ATTRIBUTES = ("axis", "axes", "block_size", "output_dtype", "perm", "to", "transA", "transB", "alpha", "beta", "allowzero",
               "bits", "K", "N", "value", "then_branch", "body")  # fmt: skip
_VALUES: Any = (*_SIZES, 0.5, float("nan"), float("inf"), "text", [1, 0], [0], [-1], [])
_NUMBERS_AS_BYTES = (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x88\x88\x88\x88")
_NAMES = ("", "n" * 5000, "other", "\0", "w_d.MatMulNBits.B")
_Fields = Sequence[tuple[str, Sequence[object]]]
"""Names of fields, and what may stand there; nothing: one of the model's names, or an odd one."""
Random = random.Random
Mutation = Callable[[Random, onnx.ModelProto], None]
_Some = Callable[[Random, onnx.ModelProto], Any]


def _some_graph(rng: Random, model: onnx.ModelProto) -> Any:
    """One of the graphs, or a function's body."""
    return rng.choice([*graphs_of(model.graph), *model.functions])


def _some_node(rng: Random, model: onnx.ModelProto) -> onnx.NodeProto:
    graph = _some_graph(rng, model)
    if not graph.node:
        graph = model.graph if model.graph.node else model.graph.node.add() and model.graph
    # Where weights are read, more often than elsewhere.
    preferred = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    node: onnx.NodeProto = rng.choice(preferred if preferred and rng.random() < 0.4 else graph.node)
    return node


def _some_tensor(rng: Random, model: onnx.ModelProto) -> TensorProto:
    graph = rng.choice([*graphs_of(model.graph)])
    tensors = [*graph.initializer, *(attr.t for node in graph.node for attr in node.attribute if attr.HasField("t"))]
    new = model.graph.initializer.add(name="new", data_type=TensorProto.FLOAT) if not tensors else None
    tensor: TensorProto = new or rng.choice(tensors)
    return tensor


def _names_of(model: onnx.ModelProto) -> list[str]:
    names = [value.name for graph in graphs_of(model.graph) for value in (*graph.input, *graph.initializer)]
    names += [name for graph in graphs_of(model.graph) for node in graph.node for name in node.output]
    return names or ["x"]


def _field(rng: Random, model: onnx.ModelProto, some: _Some, fields: _Fields) -> None:
    """Another value in a field of some message, or none; in a repeated field, also one more or one less, or many."""
    message, (name, choices) = some(rng, model), rng.choice(fields)
    new = rng.choice(choices or (*_NAMES, *rng.choices(_names_of(model), k=len(_NAMES))))
    values, kind = getattr(message, name), rng.randrange(16)
    if kind == 0:
        message.ClearField(name)
    elif isinstance(values, str | int):
        setattr(message, name, new)
    elif kind == 1 and isinstance(new, int):
        values.extend([new] * rng.choice((62, 63, 1000, 20_000)))
    elif kind < 6 or not values:
        values.insert(rng.randrange(len(values) + 1), new)
    elif kind < 9:
        del values[rng.randrange(len(values))]
    else:
        values[rng.randrange(len(values))] = new


def _repeated(rng: Random, model: onnx.ModelProto) -> None:
    """A message of a repeated field once more, or not at all."""
    graph, node = rng.choice([*graphs_of(model.graph)]), _some_node(rng, model)
    of_model = (model.opset_import, model.functions)
    messages = rng.choice((node.attribute, graph.node, graph.initializer, graph.input, graph.output, *of_model))
    if messages:
        at = rng.randrange(len(messages))
        if rng.random() < 0.5:
            messages.insert(rng.randrange(len(messages)), messages[at])
        else:
            del messages[at]


def _swapped_dims(rng: Random, model: onnx.ModelProto) -> None:
    """The same number of elements in another shape."""
    dims = _some_tensor(rng, model).dims
    dims[:] = rng.sample(dims, len(dims))


def _new_attribute(rng: Random, model: onnx.ModelProto, names: Sequence[str] = _ATTRIBUTES, values: Any = _VALUES) -> None:
    value = rng.choice(values)
    kind = AttributeProto.INTS if value == [] else None
    _some_node(rng, model).attribute.append(helper.make_attribute(rng.choice(names), value, attr_type=kind))


def _external(rng: Random, model: onnx.ModelProto) -> None:
    tensor = _some_tensor(rng, model)
    tensor.data_location = rng.choice((TensorProto.EXTERNAL,) * 9 + (TensorProto.DEFAULT,))
    if rng.random() < 0.7:
        tensor.ClearField("raw_data")
    if rng.random() < 0.9:
        tensor.external_data.add(key="location", value=rng.choice(_LOCATIONS if rng.random() < 0.5 else _LOCATIONS[:4]))
    for key in rng.sample(("offset", "length", "offset", "location", "checksum", ""), rng.randrange(4)):
        tensor.external_data.add(key=key, value=rng.choice(_LOCATIONS if key == "location" else _NUMBERS))


def _raw_data(rng: Random, model: onnx.ModelProto) -> None:
    tensor = _some_tensor(rng, model)
    kind = rng.randrange(6)
    if kind == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == 1:
        tensor.raw_data = tensor.raw_data + rng.randbytes(rng.choice((1, 2, 4, 4096)))
    elif kind == 2:
        tensor.ClearField("raw_data")
    elif kind == 3:
        tensor.int32_data.extend([rng.choice((-1, 0, 255, 2**31 - 1))] * rng.choice((1, 8, 512)))
    elif kind == 4:
        values = list(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.int32_data.extend(values)
    else:
        tensor.segment.begin, tensor.segment.end = 0, rng.choice(_SIZES)


def _bytes_of_a_tensor(rng: Random, model: onnx.ModelProto) -> None:
    """Other numbers: NaN and infinite scales, zero points at the ends of their range."""
    tensor = _some_tensor(rng, model)
    raw = bytearray(tensor.raw_data)
    if raw:
        at = rng.randrange(len(raw))
        raw[at : at + 4] = rng.choice(_NUMBERS_AS_BYTES)[: len(raw) - at]
        tensor.raw_data = bytes(raw)


def _nodes(rng: Random, model: onnx.ModelProto) -> None:
    nodes = _some_graph(rng, model).node
    kept, kind = list(onnx.GraphProto(node=nodes).node), rng.randrange(3)
    rng.shuffle(kept)
    if kind == 0:
        del nodes[:]
        nodes.extend(kept)
    elif kept and kind == 1:
        kept[0].output[:] = [f"{name}.again" for name in kept[0].output]
        nodes.append(kept[0])
    elif nodes:
        # A node of a kind that is looked through, between two others.
        at = rng.randrange(len(nodes))
        name = nodes[at].input[0] if nodes[at].input else "x"
        nodes[at].input[:1] = [f"{name}.through"]
        nodes.insert(at, helper.make_node(rng.choice(_OPERATORS), [name], [f"{name}.through"]))


def _subgraph(rng: Random, model: onnx.ModelProto) -> None:
    """The whole graph again, inside one of its nodes: its names stand for two things."""
    node = _some_node(rng, model)
    copy = onnx.GraphProto.FromString(model.graph.SerializeToString())
    if rng.random() < 0.5:
        del copy.initializer[:]
    if len(copy.SerializeToString()) < 20_000:
        node.attribute.append(helper.make_attribute(rng.choice(("then_branch", "else_branch", "body", "g")), copy))


def _function(rng: Random, model: onnx.ModelProto) -> None:
    """One of the graph's nodes as a function, called in its place, and sometimes by itself."""
    if not model.graph.node:
        return
    node = rng.choice(model.graph.node)
    body = [onnx.NodeProto.FromString(node.SerializeToString())]
    if rng.random() < 0.3:
        body.append(helper.make_node("made", node.input, [f"{name}.inner" for name in node.output], domain="local"))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    inputs = list(dict.fromkeys(node.input))
    model.functions.append(helper.make_function("local", "made", inputs, list(node.output), body, opsets))
    node.op_type, node.domain = "made", "local"
    del node.attribute[:]
    node.input[:] = inputs
    if rng.random() < 0.8:
        model.opset_import.append(opsets[1])


def _interface(rng: Random, model: onnx.ModelProto) -> None:
    graph, name = rng.choice([*graphs_of(model.graph)]), rng.choice(_names_of(model))
    shape: list[Any] = [rng.choice((*_SIZES, "m", "")) for _ in range(rng.choice((0, 1, 2, 2, 3, 70)))]
    value = helper.make_tensor_value_info(name, rng.choice((TensorProto.FLOAT, *range(27))), shape)
    rng.choice((graph.input, graph.output, graph.value_info)).append(value)


def _initializer(rng: Random, model: onnx.ModelProto) -> None:
    """An initializer that is an input, too, or the value of a Constant node instead."""
    graph = rng.choice([*graphs_of(model.graph)])
    if not graph.initializer:
        return
    at = rng.randrange(len(graph.initializer))
    tensor = graph.initializer[at]
    if rng.random() < 0.5:
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type or 1, list(tensor.dims)[:70]))
    else:
        graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        del graph.initializer[at]


_scale = partial(_new_attribute, names=("alpha", "beta"), values=(0.0, -1.0, 0.5, 1e30, 3e38, float("nan")))
# How often, of which messages, and which fields.
_PLACES: tuple[tuple[int, _Some, _Fields], ...] = (
    (2, _some_tensor, [("dims", (1, *_SIZES))]),
    (2, _some_tensor, [("data_type", (*range(28), 99, -1)), ("name", ())]),
    (3, _some_node, [("input", ()), ("input", ()), ("output", ()), ("name", ())]),
    (1, _some_node, [("op_type", _OPERATORS), ("op_type", _OPERATORS), ("domain", _DOMAINS)]),
    (1, lambda rng, model: rng.choice(_some_node(rng, model).attribute or [AttributeProto()]),
     [("name", _ATTRIBUTES), ("type", range(15)), ("ints", _SIZES), ("i", _SIZES)]),
    (1, lambda rng, model: rng.choice(model.opset_import or [model.opset_import.add()]),
     [("version", (*_SIZES, 9, 10, 11, 13, 17, 19, 21, 23, 24, 25)), ("domain", _DOMAINS)]),
    (1, lambda rng, model: model, [("ir_version", (*_SIZES, 3, 4, 8, 10, 11, 13))]),
)  # fmt: skip
MESSAGE_MUTATIONS: Sequence[Mutation] = (
    _repeated, _repeated, _swapped_dims, _new_attribute, _scale, _external, _external, _raw_data, _raw_data,
    _bytes_of_a_tensor, _nodes, _subgraph, _function, _interface, _initializer,
    *(partial(_field, some=some, fields=fields) for count, some, fields in _PLACES for _ in range(count)),
)  # fmt: skip
