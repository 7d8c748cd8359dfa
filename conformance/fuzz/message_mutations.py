"""Mutations of a parsed model: what a malicious or a careless writer could have put there."""

import random
from collections.abc import Callable, Sequence
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
"""External data locations. What stands beside a mutated model is the caller's to provide: a file `model.data`, a folder
`sub`, the links `link.data` (to it), `leaving.data` (to ../outside.data) and `zero` (to /dev/zero), and a FIFO `fifo`."""
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
_LONG = 5000
Random = random.Random
Mutation = Callable[[Random, onnx.ModelProto], None]


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
    """Every name of a value."""
    names = [value.name for graph in graphs_of(model.graph) for value in (*graph.input, *graph.initializer)]
    names += [name for graph in graphs_of(model.graph) for node in graph.node for name in node.output]
    return names or ["x"]


def _dims(rng: Random, model: onnx.ModelProto) -> None:
    dims = _some_tensor(rng, model).dims
    kind = rng.randrange(6)
    if kind < 3 and dims:
        dims[rng.randrange(len(dims))] = rng.choice(_SIZES)
    elif kind == 3 and dims:
        del dims[rng.randrange(len(dims))]
    elif kind == 4:
        dims.insert(rng.randrange(len(dims) + 1), rng.choice((1, *_SIZES)))
    else:
        dims.extend([rng.choice((1, 2, 2**62))] * rng.choice((1, 62, 63, 1000, 20_000)))


def _swapped_dims(rng: Random, model: onnx.ModelProto) -> None:
    """The same number of elements in another shape."""
    dims = _some_tensor(rng, model).dims
    sizes = list(dims)
    rng.shuffle(sizes)
    dims[:] = sizes


def _data_type(rng: Random, model: onnx.ModelProto) -> None:
    _some_tensor(rng, model).data_type = rng.choice((*range(28), 99, -1))


def _attribute(rng: Random, model: onnx.ModelProto) -> None:
    node = _some_node(rng, model)
    kind = rng.randrange(7)
    if kind == 0 or not node.attribute:
        name, value = rng.choice(_ATTRIBUTES), rng.choice(_VALUES)
        if value == []:
            node.attribute.add(name=name, type=AttributeProto.INTS)
        else:
            node.attribute.append(helper.make_attribute(name, value))
        return
    attr = rng.choice(node.attribute)
    if kind == 1:
        node.attribute.remove(attr)
    elif kind == 2:
        node.attribute.append(attr)
    elif kind == 3:
        attr.name = rng.choice(_ATTRIBUTES)
    elif kind == 4:
        attr.type = rng.randrange(15)
    elif attr.ints and kind == 5:
        attr.ints[rng.randrange(len(attr.ints))] = rng.choice(_SIZES)
    else:
        attr.i = rng.choice(_SIZES)


def _scalar(rng: Random, model: onnx.ModelProto) -> None:
    """alpha and beta."""
    attributes = _some_node(rng, model).attribute
    name, value = rng.choice(("alpha", "beta")), rng.choice((0.0, -1.0, 0.5, 1e30, 3e38, float("nan")))
    attributes.append(helper.make_attribute(name, value))


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


def _name(rng: Random, model: onnx.ModelProto) -> None:
    names = _names_of(model)
    new = rng.choice((rng.choice(names), "", "n" * _LONG, "other", "\0", "w_d.MatMulNBits.B"))
    node = _some_node(rng, model)
    kind = rng.randrange(4)
    if kind == 0 and node.output:
        node.output[rng.randrange(len(node.output))] = new
    elif kind == 1:
        _some_tensor(rng, model).name = new
    elif kind == 2:
        node.name = new
    elif node.input:
        node.input[rng.randrange(len(node.input))] = new


def _inputs(rng: Random, model: onnx.ModelProto) -> None:
    node = _some_node(rng, model)
    kind = rng.randrange(4)
    if kind == 0 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif kind == 1:
        node.input.append(rng.choice(_names_of(model)))
    elif kind == 2:
        node.output.append("another")
    elif node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_names_of(model))


def _nodes(rng: Random, model: onnx.ModelProto) -> None:
    nodes = _some_graph(rng, model).node
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    if not kept:
        return
    at, kind = rng.randrange(len(kept)), rng.randrange(5)
    if kind == 0:
        rng.shuffle(kept)
    elif kind == 1:
        del kept[at]
    elif kind == 2:
        kept.insert(rng.randrange(len(kept)), kept[at])
    elif kind == 3:
        kept[at].output[:] = [f"{name}.again" for name in kept[at].output]
        kept.append(kept[at])
    else:
        # A node of a kind that is looked through, between two others.
        name = kept[at].input[0] if kept[at].input else "x"
        kept.insert(at, helper.make_node(rng.choice(_OPERATORS), [name], [f"{name}.through"]))
        if kept[at + 1].input:
            kept[at + 1].input[0] = f"{name}.through"
    del nodes[:]
    nodes.extend(kept)


def _operator(rng: Random, model: onnx.ModelProto) -> None:
    node = _some_node(rng, model)
    if rng.random() < 0.7:
        node.op_type = rng.choice(_OPERATORS)
    else:
        node.domain = rng.choice(_DOMAINS)


def _subgraph(rng: Random, model: onnx.ModelProto) -> None:
    """The whole graph again, inside one of its nodes: its names stand for two things."""
    node = _some_node(rng, model)
    copy = onnx.GraphProto.FromString(model.graph.SerializeToString())
    if rng.random() < 0.5:
        del copy.initializer[:]
    if len(copy.SerializeToString()) < 20_000:
        node.attribute.append(helper.make_attribute(rng.choice(("then_branch", "else_branch", "body", "g")), copy))


def _function(rng: Random, model: onnx.ModelProto) -> None:
    """Some of the graph's nodes as a function, called in their place, and sometimes by itself."""
    kind = rng.randrange(4)
    if model.functions and kind == 0:
        model.functions.append(rng.choice(model.functions))
        return
    if model.functions and kind == 1:
        del model.functions[rng.randrange(len(model.functions))]
        return
    if not model.graph.node:
        return
    at = rng.randrange(len(model.graph.node))
    node = model.graph.node[at]
    body = [onnx.NodeProto.FromString(node.SerializeToString())]
    if kind == 2:
        body.append(helper.make_node("made", node.input, [f"{name}.inner" for name in node.output], domain="local"))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    inputs = list(dict.fromkeys(node.input))
    model.functions.append(helper.make_function("local", "made", inputs, list(node.output), body, opsets))
    node.op_type, node.domain = "made", "local"
    del node.attribute[:]
    node.input[:] = inputs
    if rng.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("local", 1))


def _opset(rng: Random, model: onnx.ModelProto) -> None:
    kind = rng.randrange(4)
    if kind == 0 and model.opset_import:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    elif kind == 1 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((*_SIZES, 9, 10, 11, 13, 17, 19, 21, 23, 24, 25))
    else:
        model.opset_import.append(helper.make_opsetid(rng.choice(_DOMAINS), rng.choice((*_SIZES, 13, 21))))


def _version(rng: Random, model: onnx.ModelProto) -> None:
    if rng.random() < 0.2:
        model.ClearField("ir_version")
    else:
        model.ir_version = rng.choice((*_SIZES, 3, 4, 8, 10, 11, 13))


def _interface(rng: Random, model: onnx.ModelProto) -> None:
    """Inputs, outputs and stated shapes."""
    graph = rng.choice([*graphs_of(model.graph)])
    name = rng.choice(_names_of(model))
    shape: list[Any] = [rng.choice((*_SIZES, "m", "")) for _ in range(rng.choice((0, 1, 2, 2, 3, 70)))]
    value = helper.make_tensor_value_info(name, rng.choice((TensorProto.FLOAT, *range(27))), shape)
    rng.choice((graph.input, graph.output, graph.value_info)).append(value)
    if rng.random() < 0.3:
        fields = [field for field in (graph.input, graph.output) if field]
        if fields:
            field = rng.choice(fields)
            del field[rng.randrange(len(field))]


def _initializer(rng: Random, model: onnx.ModelProto) -> None:
    graph = rng.choice([*graphs_of(model.graph)])
    if not graph.initializer:
        return
    at, kind = rng.randrange(len(graph.initializer)), rng.randrange(4)
    tensor = graph.initializer[at]
    if kind == 0:
        del graph.initializer[at]
    elif kind == 1:
        graph.initializer.append(tensor)
    elif kind == 2:
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type or 1, list(tensor.dims)[:70]))
    else:
        graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
        del graph.initializer[at]


MESSAGE_MUTATIONS: Sequence[Mutation] = (
    _dims, _dims, _swapped_dims, _data_type, _attribute, _attribute, _scalar, _external, _external, _raw_data, _raw_data,
    _bytes_of_a_tensor, _name, _name, _inputs, _nodes, _operator, _subgraph, _function, _opset, _version, _interface,
    _initializer,
)  # fmt: skip
