"""A model opened without reading its weights: a small ModelProto plus where its large tensors are."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError, readable
from ort_qdq_plugin.model.functions import check_functions
from ort_qdq_plugin.model.tensors import ByteSource, ExternalFiles, FileSource, MemorySource, StoredTensor, stored_tensor
from ort_qdq_plugin.model.wire import without_large_tensors

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["OpenedModel", "Skeleton", "external_tensors", "open_skeleton", "refer", "subgraphs"]

# Attributes of one node, graphs of one model: beyond these it is no real model, and small files of empty messages would take
# much memory and time.
_MAX_ATTRIBUTES = 1000
_MAX_GRAPHS = 10_000

# ORT format models are flatbuffers with this file identifier behind the root offset.
_ORT_FORMAT_IDENTIFIER = b"ORTM"


@dataclass(frozen=True)
class Skeleton:
    """The serialized model without its large tensors, and what the references in it point into.

    Tensors of the model file itself have `inline_location` as their location; nobody can know that name beforehand.
    """

    data: bytes
    source: ByteSource
    files: ExternalFiles
    inline_location: str

    def mentions(self, op_type: str) -> bool:
        """Whether a node of this type may be in the model; False is certain. Costs no parsing."""
        return op_type.encode() in self.data

    @property
    def stored_bytes(self) -> int:
        """Length of the model and of its external data files, as far as tensors were located in them."""
        return sum(source.size for source in self._sources)

    def check_unchanged(self) -> None:
        """Raise SourceChangedError where one of the model's files is no longer what was opened."""
        for source in self._sources:
            source.check_unchanged()

    def close(self) -> None:
        """Close the model's files: nothing more will be read."""
        for source in self._sources:
            source.close()

    @property
    def _sources(self) -> tuple[ByteSource, ...]:
        return (self.source, *self.files.opened)

    def parse(self) -> OpenedModel:
        """The model as messages; raises ModelError where the bytes are no model."""
        from onnx import ModelProto

        with readable():
            model = ModelProto()
            model.ParseFromString(self.data)
            if not model.opset_import:
                # ONNX Runtime refuses it, unless fused nodes bring an import of their own.
                raise ModelError("no opset_import")
            check_functions(model)
            if _dequantizes_in_functions(model):
                # ONNX Runtime inlines functions as well, before it fuses anything.
                from onnx.inliner import inline_local_functions

                model = inline_local_functions(model)
            opened = OpenedModel(model, self)
            opened.settle_attributes()
            return opened


def open_skeleton(model: str | bytes, data_folder: str | None) -> Skeleton | None:
    """Open a model by path or as bytes; None for what is no ONNX model in protobuf form.

    `data_folder`: ``session.model_external_initializers_file_folder_path``, where external data lies for a model given as
    bytes. Raises ModelError or OSError where the model cannot be read.
    """
    if isinstance(model, bytes):
        source: ByteSource = MemorySource(model)
        files = ExternalFiles.within(data_folder) if data_folder else ExternalFiles.none()
    else:
        source = FileSource(model)
        files = ExternalFiles.within(data_folder) if data_folder else ExternalFiles.beside(model)
    head = bytearray(min(8, source.size))
    source.read_into(0, memoryview(head))
    if head[4:] == _ORT_FORMAT_IDENTIFIER or not head:
        return None
    # Nobody can know this name beforehand and write a model that refers into itself with it.
    inline_location = f"ort-qdq-plugin-{secrets.token_hex(8)}/model"
    return Skeleton(without_large_tensors(source, inline_location), source, files, inline_location)


@dataclass(frozen=True)
class OpenedModel:
    """The parsed skeleton. `proto` is ours to change."""

    proto: ModelProto
    skeleton: Skeleton
    # By identity, which stays while the message is held here. Thousands of nodes may share a tensor that takes long to read.
    _located: dict[int, tuple[TensorProto, StoredTensor | str]] = field(default_factory=dict, repr=False, compare=False)

    def locate(self, tensor: TensorProto) -> StoredTensor:
        """Where the bytes of `tensor` are; raises ModelError when they are not all there."""
        if id(tensor) not in self._located:
            files, source, location = self.skeleton.files, self.skeleton.source, self.skeleton.inline_location
            try:
                found: StoredTensor | str = stored_tensor(tensor, files, source, location)
            except (ModelError, OSError) as error:
                found = str(error)
            self._located[id(tensor)] = (tensor, found)
        stored = self._located[id(tensor)][1]
        if isinstance(stored, str):
            raise ModelError(stored)
        return stored

    def settle_attributes(self) -> None:
        """Take references out of nodes' attributes, where ONNX Runtime does not look for external data.

        A Constant node becomes the initializer that it stands for; other tensors get their bytes back. Raises ModelError
        where there are more graphs or attributes than a model has.
        """
        found, waiting = 1, [self.proto.graph]
        while waiting:
            graph = waiting.pop()
            constants = []
            for index, node in enumerate(graph.node):
                if not node.op_type or len(node.attribute) > _MAX_ATTRIBUTES:
                    raise ModelError(f"node {node.name[:100]!r}: no operator type, or {len(node.attribute)} attributes")
                found += sum(attr.HasField("g") or len(attr.graphs) for attr in node.attribute)
                if found > _MAX_GRAPHS:
                    raise ModelError(f"more than {_MAX_GRAPHS} graphs")
                waiting += subgraphs(node)
                if self._is_settled(node, graph):
                    constants.append(index)
            for index in reversed(constants):
                del graph.node[index]

    def _is_settled(self, node: NodeProto, graph: GraphProto) -> bool:
        """Whether `node` is a Constant that became an initializer of `graph`; its references are gone otherwise."""
        for attr in node.attribute:
            if not (attr.HasField("t") and self._is_inline(attr.t)):
                continue
            is_constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx") and attr.name == "value"
            if is_constant and node.output:
                tensor = graph.initializer.add()
                tensor.CopyFrom(attr.t)
                tensor.name = node.output[0]
                return True
            self.make_inline(attr.t)
        return False

    def make_inline(self, tensor: TensorProto) -> None:
        """Read the bytes of `tensor` into the message."""
        stored = self.locate(tensor)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = stored.read().tobytes()

    def _is_inline(self, tensor: TensorProto) -> bool:
        return tensor.data_location == tensor.EXTERNAL and any(
            entry.key == "location" and entry.value == self.skeleton.inline_location for entry in tensor.external_data
        )


def _dequantizes_in_functions(model: ModelProto) -> bool:
    """Whether a model-local function may take part in dequantizing a weight."""
    if not model.functions:
        return False
    if any(node.op_type == "DequantizeLinear" for function in model.functions for node in function.node):
        return True
    local = {(function.domain, function.name) for function in model.functions}
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return any((node.domain, node.op_type) in local and not dequantized.isdisjoint(node.input) for node in model.graph.node)


def external_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every initializer of `graph` and its subgraphs whose bytes are elsewhere."""
    yield from (tensor for tensor in graph.initializer if tensor.data_location == tensor.EXTERNAL)
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from external_tensors(subgraph)


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among the attributes of `node`, in their order."""
    return [graph for attr in node.attribute for graph in ([attr.g] if attr.HasField("g") else attr.graphs)]


def refer(tensor: TensorProto, location: str, offset: int, nbytes: int) -> None:
    """Make `tensor` external data: `nbytes` bytes at byte `offset` of `location`."""
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
