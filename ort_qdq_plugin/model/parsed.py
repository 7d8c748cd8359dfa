"""A parsed model: messages, and where the bytes of every tensor are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ModelError, readable
from ort_qdq_plugin.model.functions import check_functions
from ort_qdq_plugin.model.messages import ModelProto, external_data, is_standard, onnx_library, subgraphs
from ort_qdq_plugin.model.skeleton import Skeleton
from ort_qdq_plugin.model.tensors import StoredTensor, stored_tensor

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

__all__ = ["ParsedModel", "parse"]

# Attributes of one node, graphs of one model. No real model has more, but a small file can hold enough empty messages to
# cost much memory and time.
_MAX_ATTRIBUTES = 1000
_MAX_GRAPHS = 10_000


def parse(skeleton: Skeleton) -> ParsedModel:
    """Parse a skeleton. Functions that may dequantize weights are inlined.

    Raises:
        ModelError: The bytes are no model, or one that ONNX Runtime refuses.
    """
    with readable():
        model = ModelProto()
        model.ParseFromString(skeleton.data)
        if not model.opset_import:
            # ONNX Runtime refuses such a model, but would not if fused nodes brought an import of their own.
            raise ModelError("no opset_import")
        check_functions(model)
        if _dequantizes_in_functions(model):
            # ONNX Runtime inlines functions as well, before it fuses anything.
            model = onnx_library("onnx.inliner").inline_local_functions(model)
        opened = ParsedModel(model, skeleton)
        opened.inline_attribute_tensors()
        return opened


class ParsedModel:
    """A model as messages, its large tensors still where they are stored."""

    def __init__(self, proto: ModelProto, skeleton: Skeleton) -> None:
        self.proto = proto  # ours to change
        self.skeleton = skeleton
        # Thousands of nodes may share a tensor that takes long to locate. By identity: the message is held here as well, so
        # that no other one gets its identity.
        self._located: dict[int, tuple[TensorProto, StoredTensor | tuple[type[ModelError], str]]] = {}

    def locate(self, tensor: TensorProto) -> StoredTensor:
        """Find the bytes of a tensor of this model.

        Raises:
            ExternalDataError: They are not all there.
            ModelError: The tensor is not as the format has it.
        """
        if id(tensor) not in self._located:
            files, source, location = self.skeleton.files, self.skeleton.source, self.skeleton.inline_location
            found: StoredTensor | tuple[type[ModelError], str]
            try:
                found = stored_tensor(tensor, files, source, location)
            except ModelError as error:
                found = type(error), str(error)
            self._located[id(tensor)] = (tensor, found)
        stored = self._located[id(tensor)][1]
        if isinstance(stored, StoredTensor):
            return stored
        kind, problem = stored
        raise kind(problem)

    def inline_attribute_tensors(self) -> None:
        """Take references out of nodes' attributes, where ONNX Runtime does not look for external data that it is given.

        A Constant node becomes the initializer that it stands for. Other tensors get their bytes back if the references are
        those of the skeleton.

        Raises:
            ModelError: There are more graphs or attributes than a real model has.
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
                if self._became_initializer(node, graph):
                    constants.append(index)
            for index in reversed(constants):
                del graph.node[index]

    def _became_initializer(self, node: NodeProto, graph: GraphProto) -> bool:
        """Whether `node` is a Constant that became an initializer of `graph`; its references are gone otherwise."""
        for attr in node.attribute:
            if not (attr.HasField("t") and attr.t.data_location == attr.t.EXTERNAL):
                continue
            is_inline = self._is_inline(attr.t)
            if not is_inline and not self._is_there(attr.t):
                continue  # ONNX Runtime decides what to say
            if node.op_type == "Constant" and is_standard(node) and attr.name == "value" and node.output:
                tensor = graph.initializer.add()
                tensor.CopyFrom(attr.t)
                tensor.name = node.output[0]
                return True
            if is_inline:
                self.make_inline(attr.t)
        return False

    def make_inline(self, tensor: TensorProto) -> None:
        """Read the bytes of `tensor` into the message."""
        stored = self.locate(tensor)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        tensor.raw_data = stored.read().tobytes()

    def _is_inline(self, tensor: TensorProto) -> bool:
        return external_data(tensor).get("location") == self.skeleton.inline_location

    def _is_there(self, tensor: TensorProto) -> bool:
        try:
            self.locate(tensor)
        except ModelError:
            return False
        return True


def _dequantizes_in_functions(model: ModelProto) -> bool:
    """Whether a model-local function may take part in dequantizing a weight."""
    if not model.functions:
        return False
    if any(node.op_type == "DequantizeLinear" for function in model.functions for node in function.node):
        return True
    local = {(function.domain, function.name) for function in model.functions}
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return any((node.domain, node.op_type) in local and not dequantized.isdisjoint(node.input) for node in model.graph.node)
