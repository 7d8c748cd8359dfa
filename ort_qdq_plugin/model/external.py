"""Whether the external data of a model is all there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import ExternalDataError, ModelError, readable
from ort_qdq_plugin.model.messages import ModelProto, external_data, external_tensors, subgraphs
from ort_qdq_plugin.model.parsed import ParsedModel
from ort_qdq_plugin.model.skeleton import Skeleton
from ort_qdq_plugin.model.tensors import shape_of, tensor_bytes

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto

__all__ = ["check_external_data", "check_external_data_of"]


def check_external_data(skeleton: Skeleton) -> None:
    """`check_external_data_of` for a model that is only opened.

    Raises:
        ExternalDataError: It is not all there.
        ModelError: The bytes are no model.
    """
    with readable():
        proto = ModelProto.FromString(skeleton.data)
    check_external_data_of(ParsedModel(proto, skeleton))


def check_external_data_of(model: ParsedModel) -> None:
    """Raise ExternalDataError unless all external data of a model is there that anything in it reads.

    What no node reads need not be there for ONNX Runtime (seen in 1.32.0). What cannot be used for another reason is left to
    others.
    """
    read: set[str] | None = None
    for tensor in external_tensors(model.proto.graph):
        try:
            model.locate(tensor)
        except ExternalDataError:
            if read is None:
                read = set(_read_in(model.proto.graph))
            if tensor.name in read:
                _check_length(model, external_data(tensor).get("location", ""))
                raise
        except ModelError:
            continue


def _read_in(graph: GraphProto) -> Iterator[str]:
    """The names of all that nodes read, and of the outputs, in a graph and its subgraphs."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for subgraph in subgraphs(node):
            yield from _read_in(subgraph)


def _check_length(model: ParsedModel, location: str) -> None:
    """Raise ExternalDataError if a file cannot be opened, or is too short for all that is in it."""
    source = model.skeleton.files.open(location)
    tensors = external_tensors(model.proto.graph)
    needed = max(_end_of(tensor) for tensor in tensors if external_data(tensor).get("location") == location)
    if needed > source.size:
        raise ExternalDataError(
            f"external data {source.name} has {source.size} bytes, {needed} are needed (a download or a copy that was not "
            "finished?)"
        ) from None


def _end_of(tensor: TensorProto) -> int:
    """Where the bytes of a tensor end in its file; 0 if that cannot be said."""
    offset = external_data(tensor).get("offset", "0")
    try:
        return int(offset) + tensor_bytes(tensor.data_type, shape_of(tensor))
    except (ModelError, ValueError):
        return 0
