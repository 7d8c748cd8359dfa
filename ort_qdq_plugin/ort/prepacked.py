"""Having ONNX Runtime pre-pack weights for files: it saves the blobs, and later takes them from the file that it maps.

ONNX Runtime saves pre-packed weights only together with an optimized model. Which blobs it makes depends on one node at a
time, so a model of a single node gives the blobs that the whole model would, in the memory of that node.

Format facts: ``external_data`` keys ``prepacked_N`` of ONNX Runtime's saved models, ``key|offset;length;checksum|...``, the
offsets in the file of the tensor itself. ``key`` is the operator's type and a hash of the weight.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.model.messages import ModelProto, external_data, external_tensors
from ort_qdq_plugin.ort.buffers import Borrowed, borrow
from ort_qdq_plugin.ort.extensions import register_extensions
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN, SAVE_PREPACKED_KEY, SAVED_DATA_KEY, SAVED_SIZE_KEY
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["PREPACKED", "Blob", "Prepacked", "blobs_in", "prepack"]

PREPACKED = "prepacked_"
"""What the keys of external data that tell of blobs begin with."""

_MODEL, _DATA = "saved.onnx", "saved.data"
_ERRORS = 3  # OrtLoggingLevel


class Blob(NamedTuple):
    """A piece of a pre-packed weight: its bytes in a file, and what ONNX Runtime says of them beside (a checksum)."""

    offset: int
    nbytes: int
    rest: tuple[str, ...]


class Prepacked(NamedTuple):
    """What one kernel made of a weight. `name` is ONNX Runtime's own: operator type and hash."""

    name: str
    blobs: tuple[Blob, ...]

    def entry(self, offsets: list[int]) -> str:
        """The value of a ``prepacked_N`` entry, the blobs at these offsets of the tensor's file."""
        parts = [";".join((str(at), str(blob.nbytes), *blob.rest)) for at, blob in zip(offsets, self.blobs, strict=True)]
        return "|".join((self.name, *parts))


def prepack(model: ModelProto, buffers: Borrowed, folder: str) -> tuple[str, dict[str, list[Prepacked]]]:
    """Have ONNX Runtime pre-pack the weights of a model.

    Args:
        model: The model; it refers to the buffers.
        buffers: Location -> the file's bytes, mapped. They are used in place.
        folder: An empty folder for what ONNX Runtime saves. The caller removes it.

    Returns:
        The path of the file that has the blobs, and what was made of each tensor, by its name.

    Raises:
        Exception: Of ONNX Runtime's.
    """
    options = onnxruntime.SessionOptions()
    # Many of these sessions run at once: threads of their own would only compete.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    options.optimized_model_filepath = os.path.join(folder, _MODEL)
    options.add_session_config_entry(SAVED_DATA_KEY, _DATA)
    options.add_session_config_entry(SAVED_SIZE_KEY, "0")
    options.add_session_config_entry(SAVE_PREPACKED_KEY, "1")
    if any(entry.domain == EXTENSIONS_DOMAIN for entry in model.opset_import):
        register_extensions(options)
    borrow(options, buffers)
    session = _native.InferenceSession(options, model.SerializeToString(), False, False)
    session.initialize_session(["CPUExecutionProvider"], [{}], set())
    with open(options.optimized_model_filepath, "rb") as file:
        saved = ModelProto.FromString(file.read())
    # An optimizer may have made another tensor of the same name.
    ours = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in external_tensors(model.graph)}
    made = {
        tensor.name: _prepacked(tensor)
        for tensor in external_tensors(saved.graph)
        if ours.get(tensor.name) == (tensor.data_type, tuple(tensor.dims))
    }
    return os.path.join(folder, _DATA), {name: found for name, found in made.items() if found}


def blobs_in(model: bytes) -> dict[str, list[Blob]]:
    """The blobs that a serialized model refers to, by the location of the file in which they are."""
    found: dict[str, list[Blob]] = {}
    for tensor in external_tensors(ModelProto.FromString(model).graph):
        blobs = [blob for prepacked in _prepacked(tensor) for blob in prepacked.blobs]
        found.setdefault(external_data(tensor)["location"], []).extend(blobs)
    return found


def _prepacked(tensor: TensorProto) -> list[Prepacked]:
    found = []
    for key, value in external_data(tensor).items():
        if key.startswith(PREPACKED):
            name, *parts = value.split("|")
            fields = [part.split(";") for part in parts]
            found.append(Prepacked(name, tuple(Blob(int(at), int(nbytes), tuple(rest)) for at, nbytes, *rest in fields)))
    return found
