"""The ways of handing weights over to a session, measured."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from conformance.contracts.small_models import (
    DIRECT_KEY,
    FOLDER_KEY,
    PARALLEL_KEY,
    external_tensor,
    identity_model,
    load,
    model_of,
    nbits_node,
    options_with,
    result_of,
    with_files,
)
from conformance.markdown import table
from ort_qdq_plugin.system.platform import host

__all__ = ["WAYS", "LayerBytes", "figures", "measure_way"]

_MB = 1e6
WAYS = {
    "by-path": "external data on disk, by path",
    "add": "`add_external_initializers`",
    "copied": "files in memory",
    "borrowed": "files in memory, borrowed",
    "trimmed": "files in memory, borrowed and trimmed",
}
_LAYER_K, _LAYER_N, _RUNS = 4096, 8192, 5


class LayerBytes(NamedTuple):
    """What one layer's operands take."""

    weight: int = _LAYER_K * _LAYER_N // 2
    scales: int = _LAYER_K * _LAYER_N // 32 * 4


_LAYER_BYTES = LayerBytes()


def _megabytes(size: str) -> float:
    """A size of this process."""
    return host.sizes_of()[size] / _MB


def measure_way(way: str, folder: Path, layers: int) -> dict[str, float]:
    """Load `layers` products in this process; what it took, beyond what was there before."""
    weight, scales = _LAYER_BYTES
    data = folder / "data"
    tensors = []
    for layer in range(layers):
        offset = layer * (weight + scales)
        tensors.append(
            external_tensor(
                f"b{layer}", "data", offset, weight, data_type=TensorProto.UINT8, dims=(_LAYER_N, _LAYER_K // 32, 16)
            )
        )
        tensors.append(external_tensor(f"s{layer}", "data", offset + weight, scales, dims=(scales // 4,)))
    nodes = [nbits_node(["x", f"b{layer}", f"s{layer}"], f"y{layer}", _LAYER_K, _LAYER_N) for layer in range(layers)]
    nodes.append(helper.make_node("Sum", [f"y{layer}" for layer in range(layers)], ["y"]))
    model = model_of(nodes, tensors, [1, _LAYER_K]).SerializeToString()
    options = options_with(**{PARALLEL_KEY: "1"})
    options.intra_op_num_threads = 2
    with open(data, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if way == "by-path":
        options.add_session_config_entry(FOLDER_KEY, str(folder))
    elif way == "add":
        everything = np.frombuffer(mapping, np.uint8)
        values = []
        for tensor in tensors:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            begin, length = int(entries["offset"]), int(entries["length"])
            kind = np.uint8 if tensor.data_type == TensorProto.UINT8 else np.float32
            values.append(everything[begin : begin + length].view(kind).reshape(tensor.dims))
        names = [tensor.name for tensor in tensors]
        options.add_external_initializers(names, [ort.OrtValue.ortvalue_from_numpy(value) for value in values])
    else:
        if way != "copied":
            options.add_session_config_entry(DIRECT_KEY, "1")
        with_files(options, data=mapping)
    load(identity_model())
    anonymous_before, resident_before, start = _megabytes("RssAnon"), _megabytes("VmRSS"), time.perf_counter()
    finished = threading.Event()
    peak_anonymous = anonymous_before

    def watch() -> None:
        nonlocal peak_anonymous
        while not finished.wait(0.01):
            if way == "trimmed":
                mapping.madvise(mmap.MADV_DONTNEED)
            peak_anonymous = max(peak_anonymous, _megabytes("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    session = load(model, options)
    seconds = time.perf_counter() - start
    finished.set()
    thread.join()
    peak_anonymous = max(peak_anonymous, _megabytes("RssAnon"))
    checksum = float(np.abs(result_of(session, np.ones((1, _LAYER_K), np.float32))).sum())
    return {
        "init": seconds,
        "peak": _megabytes("VmHWM") - resident_before,
        "anonymous": peak_anonymous - anonymous_before,
        "after": _megabytes("RssAnon") - anonymous_before,
        "checksum": checksum,
    }


def figures(megabytes: int) -> list[str]:
    """A Markdown table of WAYS, medians of interleaved fresh processes."""
    layers = max(1, round(megabytes * _MB / sum(_LAYER_BYTES)))
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="contracts-") as temporary:
        rng = np.random.default_rng(6)
        with open(Path(temporary) / "data", "wb") as file:
            for _ in range(layers):
                rng.integers(0, 256, _LAYER_BYTES.weight, np.uint8).tofile(file)
                rng.random(_LAYER_BYTES.scales // 4, np.float32).tofile(file)
        for _ in range(_RUNS):
            for way in WAYS:
                command = [sys.executable, "-m", "conformance.contracts", "--way", way, temporary, str(layers)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    sums = {run["checksum"] for way in WAYS for run in runs[way]}
    size = layers * sum(_LAYER_BYTES) / _MB
    lines = [
        f"{size:.0f} MB of MatMulNBits operands in a file, accuracy level 4, pre-packed in parallel on 2 threads; medians "
        f"of {_RUNS} fresh, interleaved processes; MB beyond what the process had before; results "
        f"{'equal' if len(sums) == 1 else '**differ**'}.",
        "",
    ]
    rows = []
    for way, title in WAYS.items():
        medians = {key: median(run[key] for run in runs[way]) for key in runs[way][0]}
        rows.append([title, f"{medians['init']:.2f}", *(f"{medians[key]:.0f}" for key in ("peak", "anonymous", "after"))])
    return lines + table(("way", "init s", "peak MB", "peak anonymous MB", "anonymous afterwards MB"), rows)
