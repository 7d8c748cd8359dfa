"""Adding ONNX Runtime's pre-packed weights to an entry. Runs in a process of its own.

    python -m ort_qdq_plugin.cache.prepack FOLDER

ONNX Runtime saves pre-packed weights when it saves an optimized model. That model is thrown away, and its blobs are kept:
each is appended to the file of the tensor that it was made of, as the format demands. A second copy of the entry's model
refers to them. The plain weights stay too: ONNX Runtime pre-packs them at each load, to check that the blobs fit this
processor. If they do, it keeps the blobs, which are mapped from the file, and no copies of its own.

Format facts: ``external_data`` keys ``prepacked_N`` of ONNX Runtime's saved models: ``key|offset;length;checksum|...``, the
offsets in the file of the tensor itself.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnxruntime

from ort_qdq_plugin.cache.store import MODEL, SHARED_DATA, SHARED_MODEL, write_file
from ort_qdq_plugin.model.messages import ModelProto, external_tensors
from ort_qdq_plugin.ort.extensions import EXTENSIONS_DOMAIN, register_extensions
from ort_qdq_plugin.ort.keys import SAVE_PREPACKED_KEY, SAVED_DATA_KEY, SAVED_SIZE_KEY
from ort_qdq_plugin.system.platform import files

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["main"]

_PREPACKED = "prepacked_"
_ALIGNMENT = 4096  # of blobs in a file, so that each can be mapped by itself
_ERRORS = 3  # OrtLoggingLevel
_SAVED, _DATA = "saved.tmp", "data"
_OURS = "packed-"  # names of files to which something can be appended begin with this


def main(arguments: Sequence[str]) -> int:
    """Complete the entry in an unfinished folder; prints the size of its pre-packed weights in bytes."""
    (folder,) = arguments
    saved = os.path.join(folder, _SAVED)
    os.mkdir(saved)
    try:
        nbytes = _complete(folder, saved)
    finally:
        shutil.rmtree(saved, ignore_errors=True)
    sys.stdout.write(f"{nbytes}\n")
    return 0


def _complete(folder: str, saved: str) -> int:
    model = _parsed(os.path.join(folder, MODEL))
    prepacked = _save(os.path.join(folder, MODEL), saved, model)
    nbytes = 0
    with files.open_to_read(os.path.join(saved, _DATA)) as data:
        for tensor in external_tensors(model.graph):
            entries, blobs = _entries(tensor), {}
            if tensor.name in prepacked:
                copied = _entries(prepacked[tensor.name])
                blobs = {key: value for key, value in copied.items() if key.startswith(_PREPACKED)}
            is_there = os.path.exists(os.path.join(folder, entries["location"]))
            if is_there and not blobs:
                continue
            if not is_there and tensor.name not in prepacked:
                raise OSError(f"{tensor.name}: {entries['location']} could not be linked into the entry")
            if not entries["location"].startswith(_OURS):
                # Nothing can be appended to a file of the model itself.
                start = _append(data, int(copied["offset"]), int(copied["length"]), os.path.join(folder, SHARED_DATA))
                entries = {"location": SHARED_DATA, "offset": str(start), "length": copied["length"]}
            file = os.path.join(folder, entries["location"])
            for key, value in blobs.items():
                name, *parts = value.split("|")
                fields = [part.split(";") for part in parts]
                moved = [[str(_append(data, int(at), int(length), file)), length, *rest] for at, length, *rest in fields]
                entries[key] = "|".join([name, *map(";".join, moved)])
                nbytes += sum(int(length) for _, length, *_ in fields)
            del tensor.external_data[:]
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
    write_file(os.path.join(folder, SHARED_MODEL), model.SerializeToString())
    return nbytes


def _save(path: str, saved: str, model: ModelProto) -> dict[str, TensorProto]:
    """Let ONNX Runtime save the model with pre-packed weights; those tensors of it that are in the model too, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS
    options.optimized_model_filepath = os.path.join(saved, MODEL)
    options.add_session_config_entry(SAVED_DATA_KEY, _DATA)
    options.add_session_config_entry(SAVED_SIZE_KEY, "0")
    options.add_session_config_entry(SAVE_PREPACKED_KEY, "1")
    if any(entry.domain == EXTENSIONS_DOMAIN for entry in model.opset_import):
        register_extensions(options)
    onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    ours = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in external_tensors(model.graph)}
    return {
        tensor.name: tensor
        for tensor in external_tensors(_parsed(options.optimized_model_filepath).graph)
        if ours.get(tensor.name) == (tensor.data_type, tuple(tensor.dims))
    }


def _parsed(path: str) -> ModelProto:
    with open(path, "rb") as file:
        model = ModelProto()
        model.ParseFromString(file.read())
        return model


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _append(data: files.File, offset: int, length: int, path: str) -> int:
    """Copy bytes of the saved data to the end of a file; the offset at which they begin there."""
    with files.open_to_write(path, create=True) as target:
        start = -(-os.fstat(target.fileno()).st_size // _ALIGNMENT) * _ALIGNMENT
        done = 0
        for chunk in files.chunks(data, offset, length):
            files.write_at(target, start + done, chunk)
            done += len(chunk)
    if done < length:
        raise OSError(f"the saved data ends at {offset + done}")
    return start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
