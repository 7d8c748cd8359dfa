"""ONNX Runtime's own calls that take external data, without this package: an engine of `ort_qdq_plugin.cli.child`."""

import mmap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

_CPU = ["CPUExecutionProvider"]
_TRIM_SECONDS = 0.01


def loader(job: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Callable[[Any], Any], None]]:
    return _load


def _load(job: dict[str, Any]) -> tuple[Callable[[Any], Any], None]:
    """Load the job's model, all of whose large tensors are in one file beside it, by the call that its options name."""
    way, path = job["options"]["way"], Path(job["model"])
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = job["threads"]
    for key, value in {**job["entries"], "session.prepack.enable_parallel": "1"}.items():
        settings.add_session_config_entry(key, value)
    if way == "by path":
        return partial(ort.InferenceSession(str(path), settings, providers=_CPU).run, None), None
    model = onnx.load(path, load_external_data=False)
    data = path.with_name(f"{path.name}.data")
    with open(data, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if way == "added":
        tensors = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
        values = [_value(tensor, np.frombuffer(mapping, np.uint8)) for tensor in tensors.values()]
        settings.add_external_initializers(list(tensors), [ort.OrtValue.ortvalue_from_numpy(value) for value in values])
    else:
        if way != "copied":
            settings.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        settings.add_external_initializers_from_files_in_memory([data.name], [mapping], [len(mapping)])
    finished = threading.Event()

    def trim() -> None:
        while way == "trimmed" and not finished.wait(_TRIM_SECONDS):
            mapping.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=trim)
    thread.start()
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=_CPU)
    finished.set()
    thread.join()
    return lambda inputs, _kept=mapping: session.run(None, inputs), None


def _value(tensor: onnx.TensorProto, everything: np.ndarray) -> np.ndarray:
    where = {entry.key: entry.value for entry in tensor.external_data}
    begin, length = int(where["offset"]), int(where["length"])
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    value: np.ndarray = everything[begin : begin + length].view(kind).reshape(tensor.dims)
    return value
