"""ONNX's protobuf message classes, without the rest of the onnx package.

``import onnx`` imports helpers, a checker and a C++ library: some 60 ms, which is more than loading a small model takes. The
message classes are one generated module in it, which is loaded here by itself. Protobuf keeps one class for each message of
a process, so that these are the very classes that ``import onnx`` gives, before or afterwards.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin.model.encoding import bytes_field
from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto

__all__ = [
    "STANDARD_DOMAINS",
    "AttributeProto",
    "FunctionProto",
    "GraphProto",
    "ModelProto",
    "NodeProto",
    "OperatorSetIdProto",
    "TensorProto",
    "add_values",
    "attribute",
    "attributes",
    "external_data",
    "external_tensors",
    "int_attribute",
    "is_standard",
    "made_node",
    "made_tensor",
    "onnx_library",
    "refer",
    "subgraphs",
    "text",
]

STANDARD_DOMAINS = ("", "ai.onnx")
"""The two names of the ONNX specification's own domain."""

_GENERATED = "onnx_ml_pb2"


def _message_classes() -> Any:
    """What has the message classes as attributes."""
    if "onnx" not in sys.modules:
        package = importlib.util.find_spec("onnx")
        for folder in (package.submodule_search_locations or ()) if package is not None else ():
            path = os.path.join(folder, f"{_GENERATED}.py")
            if os.path.exists(path):
                spec = importlib.util.spec_from_file_location(f"onnx.{_GENERATED}", path)
                assert spec is not None
                assert isinstance(spec.loader, SourceFileLoader)
                with suppress(Exception):
                    return _classes_of(spec.loader)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    # A later version of it may keep them elsewhere.
    return importlib.import_module("onnx")


def _classes_of(generated: SourceFileLoader) -> Any:
    """The message classes of the generated module, made without running it: that would import most of protobuf in Python.

    Any error means that this protobuf, or this module, is not as they are known here (protobuf 4 to 7).
    """
    if os.environ.get("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb") != "upb":
        raise ValueError("protobuf in Python alone")
    from google._upb import _message
    from google.protobuf.message import Message

    code = generated.get_code(generated.name)
    assert code is not None
    # The file's description is the one long text in it.
    described = max((constant for constant in code.co_consts if isinstance(constant, bytes)), key=len)
    file = _message.default_pool.AddSerializedFile(described)

    def made(descriptor: Any) -> Any:
        nested = {inner.name: made(inner) for inner in descriptor.nested_types}
        fields = {**nested, "DESCRIPTOR": descriptor, "__module__": generated.name}
        return _message.MessageMeta(descriptor.name, (Message,), fields)

    return SimpleNamespace(**{name: made(descriptor) for name, descriptor in file.message_types_by_name.items()})


if not TYPE_CHECKING:
    _classes = _message_classes()
    AttributeProto = _classes.AttributeProto
    FunctionProto = _classes.FunctionProto
    GraphProto = _classes.GraphProto
    ModelProto = _classes.ModelProto
    NodeProto = _classes.NodeProto
    OperatorSetIdProto = _classes.OperatorSetIdProto
    TensorProto = _classes.TensorProto


def onnx_library(module: str) -> ModuleType:
    """A module of the onnx package, such as ``onnx.inliner``, for the few models that need more than messages."""
    with fork_lock:
        return importlib.import_module(module)


def is_standard(node: NodeProto) -> bool:
    """Whether the operator is one of the ONNX specification's own domain."""
    return node.domain in STANDARD_DOMAINS


def attribute(node: NodeProto, name: str) -> AttributeProto | None:
    """The attribute called `name`, or None."""
    return next((attr for attr in node.attribute if attr.name == name), None)


def int_attribute(node: NodeProto, name: str, default: int = 0) -> int:
    """The value of the whole-number attribute called `name`, or the default."""
    found = attribute(node, name)
    return default if found is None else found.i


def attributes(node: NodeProto) -> dict[str, AttributeProto]:
    """All attributes of `node` by name."""
    return {attr.name: attr for attr in node.attribute}


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among the attributes of `node`, in their order."""
    graphs: list[GraphProto] = []
    for attr in node.attribute:
        if attr.HasField("g"):
            graphs.append(attr.g)
        elif attr.graphs:
            graphs += attr.graphs
    return graphs


def external_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every initializer of `graph` and its subgraphs whose bytes are elsewhere."""
    yield from (tensor for tensor in graph.initializer if tensor.data_location == tensor.EXTERNAL)
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from external_tensors(subgraph)


def external_data(tensor: TensorProto) -> dict[str, str]:
    """The ``external_data`` of a tensor: key -> value. Of a key that is there twice, the last one counts."""
    return {entry.key: entry.value for entry in tensor.external_data}


def refer(tensor: TensorProto, location: str, offset: int, nbytes: int) -> None:
    """Make `tensor` external data: `nbytes` bytes at byte `offset` of `location`."""
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)


def made_node(
    op_type: str, inputs: Iterable[str], outputs: Iterable[str], *, name: str = "", domain: str = "", **numbers: Any
) -> NodeProto:
    """A node. Its attributes, `numbers`, are whole numbers or sequences of them, graphs, or those of another node."""
    node = NodeProto(op_type=op_type, name=name, domain=domain)
    add_values(node, inputs, outputs)
    for key, value in numbers.items():
        if isinstance(value, AttributeProto):
            node.attribute.add().CopyFrom(value)
        elif isinstance(value, GraphProto):
            node.attribute.add(name=key, type=AttributeProto.GRAPH).g.CopyFrom(value)
        elif isinstance(value, int):
            node.attribute.add(name=key, type=AttributeProto.INT, i=value)
        else:
            node.attribute.add(name=key, type=AttributeProto.INTS, ints=value)
    return node


def add_values(node: NodeProto, inputs: Iterable[str] = (), outputs: Iterable[str] = ()) -> None:
    """Add names of values to a node. One that is not UTF-8 protobuf gives as bytes, and takes by parsing alone."""
    for number, names in enumerate((inputs, outputs), 1):
        for name in names:
            node.MergeFromString(bytes_field(number, name if isinstance(name, bytes) else name.encode()))


def text(name: str) -> str:
    """A name that can be shown and stored: one that is not UTF-8, which ONNX Runtime does not mind, has escapes."""
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name


def made_tensor(data_type: int, shape: Sequence[int], raw_data: bytes, name: str = "") -> TensorProto:
    """A tensor that holds its bytes."""
    return TensorProto(name=name, data_type=data_type, dims=shape, raw_data=raw_data)
