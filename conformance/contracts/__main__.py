"""What this package relies on in ONNX Runtime, checked against the one that is installed.

    python -m conformance.contracts [--only GLOB] [--markdown FILE]
    python -m conformance.contracts --figures [MB]    # also: the ways of handing weights over, measured

None of it is documented as a promise, so that a new release may change it. Every check is a small function whose docstring
says what is relied on and where; they use ONNX Runtime alone, not this package. The exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import gc
import inspect
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import _pybind_state as native

__all__ = ["CONTRACTS", "BrokenError", "Contract", "main"]

Array = NDArray[Any]
Check = Callable[[Path], str]

CPU = ["CPUExecutionProvider"]
DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
WIDTH = 1024
"""Elements of the small models' one initializer: more than ONNX Runtime takes for a shape or a scalar."""

_OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
_IR_VERSION = 10
_MB = 1e6


class BrokenError(Exception):
    """ONNX Runtime does not do what is relied on."""


@dataclass(frozen=True)
class Contract:
    """A check: `run` gets a folder of its own and returns what it saw, or raises BrokenError."""

    name: str
    run: Check

    @property
    def relied_on(self) -> str:
        """What is relied on and where, in one line."""
        return " ".join((self.run.__doc__ or "").split())


CONTRACTS: list[Contract] = []


def _contract(run: Check) -> Check:
    """Register a check under its function's name."""
    CONTRACTS.append(Contract(run.__name__.strip("_").replace("_", " "), run))
    return run


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenError(otherwise)


# Small models


def _values(start: int = 1) -> Array:
    return np.arange(start, start + WIDTH, dtype=np.float32)


def _tensor(name: str, values: Array, data_type: int = TensorProto.FLOAT, dims: Sequence[int] | None = None) -> TensorProto:
    return TensorProto(
        name=name, data_type=data_type, dims=values.shape if dims is None else dims, raw_data=values.tobytes()
    )


def _external(
    name: str, location: str, offset: int, length: int, data_type: int = TensorProto.FLOAT, dims: Sequence[int] = (WIDTH,)
) -> TensorProto:
    """A tensor whose bytes are elsewhere."""
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(
    nodes: Sequence[onnx.NodeProto], initializers: Sequence[TensorProto], shape: Sequence[int | str] = (WIDTH,)
) -> onnx.ModelProto:
    """A float model from x to y."""
    float_value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "contract", [float_value("x", TensorProto.FLOAT, shape)], [float_value("y", TensorProto.FLOAT, None)]
    )
    graph.initializer.extend(initializers)
    return helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=_OPSETS)


def _sum_model(*initializers: TensorProto) -> bytes:
    """y = x + each of the initializers: none of them is pre-packed, so that the kernel reads the initializer itself."""
    nodes, value = [], "x"
    for index, tensor in enumerate(initializers):
        result = "y" if index == len(initializers) - 1 else f"h{index}"
        nodes.append(helper.make_node("Add", [value, tensor.name], [result]))
        value = result
    return bytes(_model(nodes, initializers).SerializeToString())


def _options(**entries: str) -> Any:
    """Quiet SessionOptions with config entries; `__` in a name stands for a dot."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return options


def _session(model: str | bytes, options: Any = None) -> Any:
    return ort.InferenceSession(model, options or _options(), providers=CPU, enable_fallback=0)


def _y(session: Any, x: Array | None = None) -> Array:
    return np.asarray(session.run(None, {"x": np.zeros(WIDTH, np.float32) if x is None else x})[0])


def _refused(load: Callable[[], object]) -> str | None:
    """What ONNX Runtime said when it refused, None when it did not."""
    try:
        load()
    except Exception as error:  # ONNX Runtime's exception classes share no base of their own
        return str(error)
    return None


def _in_memory(options: Any, **buffers: Any) -> Any:
    """Add the buffers as files in memory, under their names."""
    lengths = [len(buffer) for buffer in buffers.values()]
    options.add_external_initializers_from_files_in_memory(list(buffers), list(buffers.values()), lengths)
    return options


def _mapping_of(values: Array) -> mmap.mmap:
    mapping = mmap.mmap(-1, values.nbytes)
    mapping[:] = values.tobytes()
    return mapping


def _mapped_file(path: Path, values: bytes, access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    """A shared mapping of a new file."""
    path.write_bytes(values)
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0, access=access)


def _nbits_node(
    inputs: Sequence[str], output: str, k: int, n: int, bits: int = 4, block: int = 32, level: int = 4
) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits", inputs, [output], domain="com.microsoft",
        K=k, N=n, bits=bits, block_size=block, accuracy_level=level,
    )  # fmt: skip


def _matmul_nbits_model(
    k: int, n: int, bits: int, block: int, level: int, initializers: Sequence[TensorProto], inputs: Sequence[str]
) -> bytes:
    node = _nbits_node(["x", *inputs], "y", k, n, bits, block, level)
    return bytes(_model([node], initializers, ["rows", k]).SerializeToString())


# Buffers that a session borrows


def _written_after_load(options: Any, mapping: mmap.mmap) -> bool:
    """Whether a write to the buffer, once the session exists, shows in its results."""
    session = _session(_sum_model(_external("w", "w", 0, 4 * WIDTH)), options)
    _expect(np.array_equal(_y(session), _values()), "the values in the buffer did not arrive")
    mapping[:] = _values(5000).tobytes()
    return np.array_equal(_y(session), _values(5000))


@_contract
def _files_in_memory_are_borrowed(_folder: Path) -> str:
    """With session.use_external_initializer_file_buffers_directly=1 a session uses the buffers given to
    add_external_initializers_from_files_in_memory in place (memory/handover.py, `borrow`)."""
    mapping = _mapping_of(_values())
    options = _in_memory(_options(**{DIRECT_KEY: "1"}), w=mapping)
    _expect(_written_after_load(options, mapping), "a write to the buffer after the load did not show")
    return "a write after the load shows in the result"


@_contract
def _files_in_memory_are_copied_without_the_key(_folder: Path) -> str:
    """Without that key ONNX Runtime copies every tensor: why the key is set (memory/handover.py, `borrow`)."""
    mapping = _mapping_of(_values())
    shown = _written_after_load(_in_memory(_options(), w=mapping), mapping)
    _expect(not shown, "a write shows: the key is not needed any more")
    return "a write after the load does not show"


@_contract
def _add_external_initializers_copies(_folder: Path) -> str:
    """add_external_initializers copies every tensor, and keeps the originals: why it is not used (memory/handover.py)."""
    values = _values()
    value = ort.OrtValue.ortvalue_from_numpy(values)
    options = _options()
    options.add_external_initializers(["w"], [value])
    model = _sum_model(_external("w", "nowhere", 0, 4 * WIDTH))
    session = _session(model, options)
    _expect(np.array_equal(_y(session), values), "the values did not arrive")
    ctypes.memset(value.data_ptr(), 0, values.nbytes)
    _expect(not value.numpy().any(), "the OrtValue was not overwritten")
    _expect(np.array_equal(_y(session), _values()), "a write shows: it borrows by now, and may be the better call")
    return "a write to the OrtValue after the load does not show"


def _if_model(initializer: Callable[[str, int], TensorProto], *, inside: bool) -> onnx.ModelProto:
    """y = x + one of two initializers, which are of the branches or, unless `inside`, of the main graph."""
    value = helper.make_tensor_value_info
    branches, outer = {}, []
    for index, name in enumerate(("then_branch", "else_branch")):
        tensor = initializer(f"{name}_w", index)
        node = helper.make_node("Add", ["x", tensor.name], [f"{name}_y"])
        own = [tensor] if inside else []
        outer += [] if inside else [tensor]
        branches[name] = helper.make_graph([node], name, [], [value(f"{name}_y", TensorProto.FLOAT, [WIDTH])], own)
    model = _model([helper.make_node("If", ["condition"], ["y"], None, None, None, **branches)], outer)
    model.graph.input.append(value("condition", TensorProto.BOOL, []))
    return model


@_contract
def _subgraphs_read_borrowed_initializers(_folder: Path) -> str:
    """Nodes in subgraphs read borrowed initializers of the main graph: operands of nodes fused there belong to it
    (session.py, `_put_fusions_in_place`)."""
    model = _if_model(lambda name, index: _external(name, "w", 4 * WIDTH * index, 4 * WIDTH), inside=False)
    mapping = _mapping_of(np.zeros(2 * WIDTH, np.float32))
    session = _session(model.SerializeToString(), _in_memory(_options(**{DIRECT_KEY: "1"}), w=mapping))
    mapping[:] = np.concatenate([_values(), _values(9)]).tobytes()
    for condition, start in ((True, 1), (False, 9)):
        y = session.run(None, {"x": np.zeros(WIDTH, np.float32), "condition": np.array(condition)})[0]
        _expect(np.array_equal(y, _values(start)), f"the branch for {condition} got other values")
    return "both branches of an If"


@_contract
def _subgraphs_own_no_files_in_memory(_folder: Path) -> str:
    """External initializers of a subgraph itself must name files that exist, also where they are in memory: those of
    subgraphs cannot be borrowed where they are (memory/handover.py, `Places`)."""
    model = _if_model(lambda name, index: _external(name, "w", 4 * WIDTH * index, 4 * WIDTH), inside=True)
    options = _in_memory(_options(**{DIRECT_KEY: "1"}), w=_mapping_of(np.zeros(2 * WIDTH, np.float32)))
    said = _refused(lambda: _session(model.SerializeToString(), options))
    _expect(said is not None, "they are accepted by now, and may be borrowed where they are")
    return f"refused: {_last_sentence(said or '')}"


@_contract
def _unaligned_tensors_load(_folder: Path) -> str:
    """A borrowed tensor may start at any byte, as inline tensors do: ONNX Runtime copies it if it must (model/wire.py)."""
    for shift in (1, 2, 3, 5):
        mapping = mmap.mmap(-1, shift + 4 * WIDTH)
        mapping[shift:] = _values().tobytes()
        options = _in_memory(_options(**{DIRECT_KEY: "1"}), w=mapping)
        y = _y(_session(_sum_model(_external("w", "w", shift, 4 * WIDTH)), options))
        _expect(np.array_equal(y, _values()), f"at byte {shift} the values are wrong")
    return "float tensors at bytes 1, 2, 3 and 5"


@_contract
def _read_only_buffers_are_accepted(folder: Path) -> str:
    """A read-only mapping of a file, and bytes, are as good as writable buffers (model/tensors.py, `ByteSource.buffer`)."""
    for name, buffer in {
        "mapping": _mapped_file(folder / "w", _values().tobytes(), mmap.ACCESS_READ),
        "bytes": _values().tobytes(),
    }.items():
        options = _in_memory(_options(**{DIRECT_KEY: "1"}), w=buffer)
        y = _y(_session(_sum_model(_external("w", "w", 0, 4 * WIDTH)), options))
        _expect(np.array_equal(y, _values()), f"{name}: wrong values")
    return "a read-only mapping and bytes"


@_contract
def _files_in_memory_are_all_or_nothing(folder: Path) -> str:
    """Once one file is in memory, ONNX Runtime looks for none on disk: all of a model's files are handed over, and never on
    the caller's options, where they would break the next model (memory/handover.py)."""
    (folder / "on_disk").write_bytes(_values().tobytes())
    tensors = [_external("v", "in_memory", 0, 4 * WIDTH), _external("w", "on_disk", 0, 4 * WIDTH)]
    path = folder / "model.onnx"
    path.write_bytes(_sum_model(*tensors))
    values = _values().tobytes()
    said = _refused(lambda: _session(str(path), _in_memory(_options(**{DIRECT_KEY: "1"}), in_memory=values)))
    _expect(said is not None, "a file on disk is found: it need not be mapped by this package any more")
    _session(str(path), _in_memory(_options(**{DIRECT_KEY: "1"}), in_memory=values, on_disk=values))
    return f"refused: {_last_sentence(said or '')}"


def _last_sentence(text: str) -> str:
    return text.strip().splitlines()[-1].rpartition(" , ")[2][-120:]


@_contract
def _borrowed_buffers_survive_set_providers(_folder: Path) -> str:
    """set_providers makes a new native session from the same options, on the same buffers (session.py, `load`)."""
    mapping = _mapping_of(_values())
    options = _in_memory(_options(**{DIRECT_KEY: "1"}), w=mapping)
    session = _session(_sum_model(_external("w", "w", 0, 4 * WIDTH)), options)
    session.set_providers(CPU)
    mapping[:] = _values(77).tobytes()
    _expect(np.array_equal(_y(session), _values(77)), "the second native session does not use the buffer")
    return "the second native session uses the buffer, too"


@_contract
def _dropping_pages_during_the_load_is_harmless(folder: Path) -> str:
    """MADV_DONTNEED on a shared file mapping drops pages from the process alone, at any moment, also while ONNX Runtime
    reads them (memory/handover.py, `trimming`)."""
    k, n = 1024, 4096
    rng = np.random.default_rng(2)
    b = rng.integers(0, 256, k * n // 2, np.uint8)
    scales = rng.random(k * n // 32, np.float32)
    offset = b.nbytes
    tensors = [
        _external("b", "packed", 0, b.nbytes, TensorProto.UINT8, (n, k // 32, 16)),
        _external("s", "packed", offset, scales.nbytes, dims=(k * n // 32,)),
    ]
    model = _matmul_nbits_model(k, n, 4, 32, 4, tensors, ["b", "s"])
    mapping = _mapped_file(folder / "packed", b.tobytes() + scales.tobytes())
    x = rng.standard_normal((3, k), np.float32)
    options = _in_memory(_options(**{DIRECT_KEY: "1"}), packed=mapping)
    expected = _y(_session(model, options), x)
    finished, drops = threading.Event(), 0

    def drop() -> None:
        nonlocal drops
        while not finished.is_set():
            mapping.madvise(mmap.MADV_DONTNEED)
            drops += 1

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        results = [_y(_session(model, options), x) for _ in range(3)]
    finally:
        finished.set()
        thread.join()
    _expect(drops > 0, "nothing was dropped meanwhile")
    _expect(all(np.array_equal(result, expected) for result in results), "the results differ")
    return f"{drops} times during 3 loads, equal results"


@_contract
def _parallel_prepacking_changes_nothing(_folder: Path) -> str:
    """session.prepack.enable_parallel=1 gives the same bits (memory/handover.py sets it where the caller did not)."""
    k, n, count = 256, 512, 6
    rng = np.random.default_rng(3)
    nodes, tensors = [], []
    for index in range(count):
        b, scales = rng.integers(0, 256, (n, k // 32, 16), np.uint8), rng.random(n * k // 32, np.float32)
        tensors += [_tensor(f"b{index}", b, TensorProto.UINT8), _tensor(f"s{index}", scales)]
        inputs = ["x", f"b{index}", f"s{index}"]
        nodes.append(_nbits_node(inputs, f"y{index}", k, n))
    nodes.append(helper.make_node("Concat", [f"y{index}" for index in range(count)], ["y"], axis=0))
    model = _model(nodes, tensors, [2, k]).SerializeToString()
    x = rng.standard_normal((2, k), np.float32)
    parallel = _options(**{PARALLEL_KEY: "1"})
    parallel.intra_op_num_threads = 2
    _expect(np.array_equal(_y(_session(model, parallel), x), _y(_session(model), x)), "the results differ")
    return f"{count} products on 2 threads, equal results"


# References into the model itself


@_contract
def _models_may_refer_into_themselves(folder: Path) -> str:
    """An initializer's raw_data may become external data that points at the same bytes of the same .onnx file, or of the
    caller's bytes, with the same result: weights inside a model are never parsed (model/wire.py, model/skeleton.py)."""
    inline = _sum_model(_tensor("w", _values()))
    path = folder / "model.onnx"
    path.write_bytes(inline)
    offset = inline.index(_values().tobytes())
    expected = _y(_session(inline))
    beside = folder / "rewritten.onnx"
    beside.write_bytes(_sum_model(_external("w", path.name, offset, 4 * WIDTH)))
    _expect(np.array_equal(_y(_session(str(beside))), expected), "by path: other values")
    model = _sum_model(_external("w", "any/name", offset, 4 * WIDTH))
    options = _options(**{DIRECT_KEY: "1"})
    options.add_external_initializers_from_files_in_memory(["any/name"], [inline], [len(inline)])
    _expect(np.array_equal(_y(_session(model, options)), expected), "from bytes: other values")
    return "by path and from bytes, equal results"


# SessionOptions


@_contract
def _native_sessions_copy_options(_folder: Path) -> str:
    """The options of a native session that was never initialized are an independent copy of those it was given, with config
    entries, plain attributes, free dimensions and added files, and outlive it (memory/handover.py, `private_options`)."""
    options = _options(**{"session.qdq_matmulnbits_accuracy_level": "2"})
    options.inter_op_num_threads = 3
    options.enable_mem_pattern = False
    options.logid = "contract"
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_free_dimension_override_by_name("rows", 5)
    copy = _copied(options)
    gc.collect()
    _expect(copy.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "2", "a config entry is lost")
    for name in ("intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern", "logid", "graph_optimization_level"):
        _expect(getattr(copy, name) == getattr(options, name), f"{name} is lost")
    identity = _model([helper.make_node("Identity", ["x"], ["y"])], [], ["rows", 2]).SerializeToString()
    _expect(_session(identity, copy).get_inputs()[0].shape == [5, 2], "a free dimension override is lost")
    copy.add_session_config_entry(PARALLEL_KEY, "1")
    copy.intra_op_num_threads = 7
    said = _refused(lambda: options.get_session_config_entry(PARALLEL_KEY))
    _expect(said is not None and options.intra_op_num_threads == 1, "a change to the copy shows in the original")
    mapping = _mapping_of(_values())
    carried = _copied(_in_memory(_options(**{DIRECT_KEY: "1"}), w=mapping))
    y = _y(_session(_sum_model(_external("w", "w", 0, 4 * WIDTH)), carried))
    _expect(np.array_equal(y, _values()), "a file in memory is lost")
    return "entries, attributes, free dimensions and files in memory"


def _copied(options: Any) -> Any:
    return native.InferenceSession(options, _identity(), False, False).session_options


def _identity() -> bytes:
    return bytes(_model([helper.make_node("Identity", ["x"], ["y"])], []).SerializeToString())


@_contract
def _copied_options_lose_providers_and_custom_operators(_folder: Path) -> str:
    """Such a copy does not have added providers (has_providers tells) or custom-op libraries: those models go by path
    (memory/handover.py, `copy_loses_something`)."""
    options = _options()
    options.add_provider("CPUExecutionProvider", {})
    _expect(options.has_providers(), "has_providers does not tell of an added provider")
    _expect(not _copied(options).has_providers(), "added providers are copied: no need to go by path for them")
    from onnxruntime_extensions import get_library_path

    options = _options()
    options.register_custom_ops_library(get_library_path())
    model = _model([helper.make_node("NegPos", ["x"], ["y", "z"], domain="ai.onnx.contrib")], [])
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    _session(model.SerializeToString(), options)
    said = _refused(lambda: _session(model.SerializeToString(), _copied(options)))
    _expect(said is not None, "custom operators are copied: no need to go by path for them")
    return "both are lost"


@_contract
def _unset_config_entries_raise(_folder: Path) -> str:
    """get_session_config_entry raises RuntimeError for an entry that is not set (options.py, `config_entry`)."""
    try:
        value = ort.SessionOptions().get_session_config_entry(PARALLEL_KEY)
    except RuntimeError:
        return "RuntimeError"
    raise BrokenError(f"it returns {value!r}")


@_contract
def _empty_entries_count_as_unset(folder: Path) -> str:
    """The folder and the parallel pre-packing entries, once set and then put back to the empty string, behave as if they had
    never been set (memory/handover.py, `by_path`)."""
    (folder / "data").write_bytes(_values().tobytes())
    path = folder / "model.onnx"
    path.write_bytes(_sum_model(_external("w", "data", 0, 4 * WIDTH)))
    options = _options(**{FOLDER_KEY: "/", PARALLEL_KEY: "1"})
    _expect(_refused(lambda: _session(str(path), options)) is not None, "the folder entry is not heeded for a path")
    for key in (FOLDER_KEY, PARALLEL_KEY):
        options.add_session_config_entry(key, "")
    _expect(np.array_equal(_y(_session(str(path), options)), _values()), "by path: wrong values")
    inline = _sum_model(_tensor("w", _values()))
    _expect(np.array_equal(_y(_session(inline, options)), _values()), "from bytes: wrong values")
    return "models by path and from bytes load"


@_contract
def _the_folder_entry_takes_the_root_directory(folder: Path) -> str:
    """A model given as bytes finds external data anywhere below the folder entry, also when that is the root directory
    (memory/handover.py, `by_path`)."""
    (folder / "data").write_bytes(_values().tobytes())
    location = os.path.relpath(os.path.realpath(folder / "data"), os.sep)
    options = _options(**{FOLDER_KEY: os.sep})
    y = _y(_session(_sum_model(_external("w", location, 0, 4 * WIDTH)), options))
    _expect(np.array_equal(y, _values()), "wrong values")
    return "a file in a temporary folder, by its path below /"


@_contract
def _external_files_by_path_may_be_unlinked(folder: Path) -> str:
    """Once a session exists, the external files that it was given by path may lose their names (session.py)."""
    (folder / "data").write_bytes(_values().tobytes())
    path = folder / "model.onnx"
    path.write_bytes(_sum_model(_external("w", "data", 0, 4 * WIDTH)))
    session = _session(str(path))
    (folder / "data").unlink()
    path.unlink()
    _expect(np.array_equal(_y(session), _values()), "wrong values")
    return "results stay"


@_contract
def _initializers_on_the_options_can_be_told(_folder: Path) -> str:
    """A model whose external file does not exist fails with "External data path validation failed", unless the caller added
    initializers or files to the options: then it fails otherwise (memory/handover.py, `supplies_initializers`)."""
    model = _sum_model(_external("w", "no-such-file", 0, 4 * WIDTH))
    added = _options()
    added.add_external_initializers(["v"], [ort.OrtValue.ortvalue_from_numpy(_values())])
    in_memory = _in_memory(_options(), other=_values().tobytes())
    for name, options, expected in (("none", _options(), True), ("added", added, False), ("files", in_memory, False)):
        said = _refused(lambda options=options: _session(model, _copied(options)))  # type: ignore[misc]
        _expect(said is not None, f"{name}: it loads")
        _expect(
            ("External data path validation failed" in (said or "")) is expected, f"{name}: {_last_sentence(said or '')}"
        )
    return "by the error that a probing model gives"


# What ONNX Runtime's own path check refuses and takes


def _loads_with_location(model: Path, location: str) -> str | None:
    model.write_bytes(_sum_model(_external("w", location, 0, 4 * WIDTH)))
    return _refused(lambda: _session(str(model)))


@_contract
def _external_data_outside_the_folder_is_refused(folder: Path) -> str:
    """ONNX Runtime refuses absolute locations, `..` and symbolic links out of the model's folder; handing a file over in
    memory skips that check, so that this package makes it itself (model/tensors.py, `ExternalFiles`)."""
    inside = folder / "inside"
    inside.mkdir()
    outside = folder / "outside"
    outside.write_bytes(_values().tobytes())
    (inside / "link").symlink_to(outside)
    for location in (str(outside), "../outside", "link"):
        _expect(_loads_with_location(inside / "model.onnx", location) is not None, f"{location} is accepted")
    return "absolute, .. and a symbolic link"


@_contract
def _links_inside_the_folder_are_accepted(folder: Path) -> str:
    """Symbolic links are fine while they stay in the model's real folder, as in Hugging Face's cache, where the model and
    its data are both links to neighbours elsewhere (model/tensors.py, `ExternalFiles`)."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "d1").write_bytes(_values().tobytes())
    (blobs / "m1").write_bytes(_sum_model(_external("w", "model.onnx.data", 0, 4 * WIDTH)))
    (snapshot / "model.onnx").symlink_to("../../blobs/m1")
    (snapshot / "model.onnx.data").symlink_to("../../blobs/d1")
    _expect(np.array_equal(_y(_session(str(snapshot / "model.onnx"))), _values()), "wrong values")
    (blobs / "link").symlink_to("d1")
    said = _loads_with_location(blobs / "model.onnx", "link")
    _expect(said is None, f"a link to a neighbour is refused: {said}")
    return "links to neighbours, and a model and its data linked from another folder"


# Sessions


@_contract
def _loading_releases_the_interpreter(_folder: Path) -> str:
    """initialize_session releases the GIL, so that a thread can drop pages meanwhile (memory/handover.py, `trimming`)."""
    k, n = 4096, 16384
    rng = np.random.default_rng(4)
    tensors = [
        _tensor("b", rng.integers(0, 256, (n, k // 32, 16), np.uint8), TensorProto.UINT8),
        _tensor("s", rng.random(k * n // 32, np.float32)),
    ]
    model = _matmul_nbits_model(k, n, 4, 32, 4, tensors, ["b", "s"])
    session = native.InferenceSession(_options(), model, False, False)
    finished, ticks = threading.Event(), 0

    def tick() -> None:
        nonlocal ticks
        while not finished.wait(0.001):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    before, start = ticks, time.perf_counter()
    session.initialize_session(CPU, [{}], set())
    during, seconds = ticks - before, time.perf_counter() - start
    finished.set()
    thread.join()
    # Held, a thread gets one or two turns at the ends.
    _expect(during > 3, f"a thread got {during} turns in {seconds * 1e3:.0f} ms")
    return f"a thread got {during} turns in {seconds * 1e3:.0f} ms"


def _threads() -> int:
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0


@_contract
def _weak_references_end_after_the_session(folder: Path) -> str:
    """Native sessions can be weakly referenced, and their finalizers run when the C++ destructor has: its profile is
    complete, its threads are gone. Only then are borrowed buffers let go (memory/handover.py, `keep_until_destroyed`)."""
    options = _options()
    options.intra_op_num_threads = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    before = _threads()
    session = _session(_sum_model(_tensor("w", _values())), options)
    _y(session)
    during = _threads()
    (profile,) = folder.glob("profile*")
    seen: list[tuple[bool, int]] = []
    weakref.finalize(session._sess, lambda: seen.append((_is_complete(profile), _threads())))
    _expect(not _is_complete(profile), "the profile is complete too early to tell anything")
    del session
    gc.collect()
    _expect(len(seen) == 1, f"the finalizer ran {len(seen)} times")
    complete, after = seen[0]
    _expect(complete, "the finalizer ran before the destructor wrote the profile's end")
    _expect(after <= before, f"of {during - before} threads {after - before} were still there")
    return f"profile complete, {during - before} threads gone"


def _is_complete(profile: Path) -> bool:
    try:
        json.loads(profile.read_text())
    except ValueError:
        return False
    return True


@_contract
def _bindings_keep_the_native_session(_folder: Path) -> str:
    """What needs the native session after its Python wrapper is gone keeps it, so that the weak reference lives on
    (memory/handover.py, `keep_until_destroyed`)."""
    session = _session(_sum_model(_tensor("w", _values())))
    reference = weakref.ref(session._sess)
    holders = {"binding": session.io_binding(), "metadata": session.get_modelmeta()}
    del session
    kept = []
    for name in list(holders):
        gc.collect()
        _expect(reference() is not None, f"{name} does not keep it")
        kept.append(name)
        del holders[name]
    gc.collect()
    _expect(reference() is None, "it outlives everything that was made from it")
    return f"kept by {' and '.join(kept)}"


@_contract
def _sessions_are_created_where_we_override(_folder: Path) -> str:
    """InferenceSession creates its native session in `_create_inference_session`, also in set_providers, from _model_path or
    _model_bytes and _sess_options, and leaves it in _sess (session.py, `load`)."""
    parameters = list(inspect.signature(ort.InferenceSession._create_inference_session).parameters)
    expected = ["self", "providers", "provider_options", "disabled_optimizers"]
    _expect(parameters == expected, f"its parameters are {parameters}")
    seen: list[tuple[object, object]] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
        _model_path: str | None
        _model_bytes: bytes | None

        def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
            seen.append((self._model_path, self._model_bytes))
            original, self._model_bytes = self._model_bytes, _identity()
            self._sess_options = _options(**{PARALLEL_KEY: "1"})
            super()._create_inference_session(providers, provider_options, disabled_optimizers)
            self._model_bytes = original

    model = _sum_model(_tensor("w", _values()))
    session = Session(model, _options(), providers=CPU)
    _expect(seen == [(None, model)], f"it saw {len(seen)} calls")
    _expect(not _y(session).any(), "the model that was put in its place was not the one loaded")
    parallel = session.get_session_options().get_session_config_entry(PARALLEL_KEY)
    _expect(parallel == "1", "the options that were put in their place were not used")
    _expect(isinstance(session._sess, native.InferenceSession), "_sess is no native session")
    session.set_providers(CPU)
    _expect(len(seen) == 2, "set_providers does not call it")
    return f"({', '.join(expected)}), once per load"


# Kernels


@_contract
def _transpose_takes_bare_pointers(_folder: Path) -> str:
    """A session of one Transpose node reads and writes memory given by address, for elements of 1, 2 and 4 bytes
    (packing/bits.py, `Transposer`)."""
    rng = np.random.default_rng(5)
    kinds = {TensorProto.UINT8: np.uint8, TensorProto.UINT16: np.uint16, TensorProto.UINT32: np.uint32}
    for element_type, kind in kinds.items():
        ends = [helper.make_tensor_value_info(name, element_type, ["a", "b"]) for name in ("m", "t")]
        graph = helper.make_graph([helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0])], "t", ends[:1], ends[1:])
        model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=_OPSETS)
        session = _session(model.SerializeToString())
        binding = session.io_binding()
        for shape in ((7, 130), (64, 64)):
            matrix = rng.integers(0, 256, (*shape, kind().itemsize), np.uint8).view(kind).reshape(shape)
            result = np.zeros(shape[::-1], kind)
            binding.bind_input("m", "cpu", 0, kind, shape, matrix.ctypes.data)
            binding.bind_output("t", "cpu", 0, kind, shape[::-1], result.ctypes.data)
            session.run_with_iobinding(binding)
            _expect(np.array_equal(result, matrix.T), f"{kind.__name__} {shape}: wrong")
    return "uint8, uint16 and uint32"


def _packed(elements: Array, bits: int) -> Array:
    """[.., E] elements -> [.., ceil(E * bits / 8)] bytes, low bits first, each row padded with zeros."""
    per = 8 // bits
    padded = np.pad(elements, [(0, 0)] * (elements.ndim - 1) + [(0, -elements.shape[-1] % per)])
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    grouped = padded.reshape(*padded.shape[:-1], -1, per).astype(np.uint8) << shifts
    packed: Array = np.bitwise_or.reduce(grouped, axis=-1)
    return packed


def _dequantized_by_nbits(elements: Array, scales: Array, bits: int, block: int, zero_points: Array | None) -> Array:
    """[K, N] what MatMulNBits takes [N, K] unsigned elements for: its product with the identity matrix."""
    n, k = elements.shape
    blocks = -(-k // block)
    padded = np.pad(elements, [(0, 0), (0, blocks * block - k)]).reshape(n, blocks, block)
    tensors = [_tensor("b", _packed(padded, bits), TensorProto.UINT8), _tensor("s", scales.reshape(-1))]
    if zero_points is not None:
        tensors.append(_tensor("z", _packed(zero_points, bits).reshape(-1), TensorProto.UINT8))
    model = _matmul_nbits_model(k, n, bits, block, 0, tensors, [tensor.name for tensor in tensors])
    return _y(_session(model), np.eye(k, dtype=np.float32))


_DEQUANTIZE_TYPES = {  # bits -> unsigned, signed
    2: (TensorProto.UINT2, TensorProto.INT2),
    4: (TensorProto.UINT4, TensorProto.INT4),
    8: (TensorProto.UINT8, TensorProto.INT8),
}


def _dequantized_by_dq(
    elements: Array, scales: Array, bits: int, block: int, zero_points: Array | None, *, signed: bool
) -> Array:
    """[K, N] what DequantizeLinear makes of [N, K] elements (their bits), blocks along axis 1."""
    kind = _DEQUANTIZE_TYPES[bits][signed]
    tensors = [
        _tensor("w", _packed(elements.reshape(-1), bits), kind, elements.shape),
        _tensor("s", scales),
    ]
    if zero_points is not None:
        tensors.append(_tensor("z", _packed(zero_points.reshape(-1), bits), kind, zero_points.shape))
    value = helper.make_tensor_value_info
    node = helper.make_node("DequantizeLinear", [tensor.name for tensor in tensors], ["y"], axis=1, block_size=block)
    graph = helper.make_graph([node], "dq", [], [value("y", TensorProto.FLOAT, elements.shape)], tensors)
    opsets = [helper.make_opsetid("", 25 if bits == 2 else 21)]
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=opsets)
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    dequantized = np.asarray(_session(model.SerializeToString(), options).run(None, {})[0])
    return np.ascontiguousarray(dequantized.T)


def _random_weight(bits: int, block: int) -> tuple[Array, Array, Array]:
    """Elements [N, K], scales and zero points [N, blocks]: odd N, odd number of blocks, the last one short."""
    rng = np.random.default_rng(bits)
    n, k = 7, 2 * block + 8
    return (
        rng.integers(0, 1 << bits, (n, k), np.uint8),
        rng.random((n, 3), np.float32) + np.float32(0.5),
        rng.integers(0, 1 << bits, (n, 3), np.uint8),
    )


@_contract
def _packed_operands_mean_what_dequantize_linear_means(_folder: Path) -> str:
    """MatMulNBits' operands, in the order that packing/layout.py writes, stand for DequantizeLinear's numbers."""
    for bits in (2, 4, 8):
        elements, scales, zero_points = _random_weight(bits, 32)
        theirs = _dequantized_by_dq(elements, scales, bits, 32, zero_points, signed=False)
        ours = _dequantized_by_nbits(elements, scales, bits, 32, zero_points)
        _expect(np.array_equal(ours, theirs), f"{bits} bits: they differ")
    return "2, 4 and 8 bits, odd shapes"


@_contract
def _signed_weights_are_flipped_unsigned_ones(_folder: Path) -> str:
    """Signed elements, with zero points or without, equal unsigned ones with each top bit flipped (packing/layout.py)."""
    for bits in (2, 4, 8):
        elements, scales, zero_points = _random_weight(bits, 32)
        top = np.uint8(1 << (bits - 1))
        for zeros in (None, zero_points):
            theirs = _dequantized_by_dq(elements, scales, bits, 32, zeros, signed=True)
            ours = _dequantized_by_nbits(elements ^ top, scales, bits, 32, None if zeros is None else zeros ^ top)
            given = "no" if zeros is None else "with"
            _expect(np.array_equal(ours, theirs), f"{bits} bits, {given} zero points: they differ")
    return "2, 4 and 8 bits, with zero points and without"


@_contract
def _missing_zero_points_are_the_middle(_folder: Path) -> str:
    """Without zero points MatMulNBits takes 2**(bits-1) and DequantizeLinear takes 0 (packing/layout.py)."""
    for bits in (2, 4, 8):
        elements, scales, zero_points = _random_weight(bits, 32)
        middle = np.full_like(zero_points, 1 << (bits - 1))
        none, explicit = (_dequantized_by_nbits(elements, scales, bits, 32, zeros) for zeros in (None, middle))
        _expect(np.array_equal(none, explicit), f"MatMulNBits, {bits} bits: not {1 << (bits - 1)}")
        none, explicit = (
            _dequantized_by_dq(elements, scales, bits, 32, zeros, signed=False) for zeros in (None, 0 * zero_points)
        )
        _expect(np.array_equal(none, explicit), f"DequantizeLinear, {bits} bits: not 0")
    return "2, 4 and 8 bits"


# The ways of handing weights over, measured


WAYS = {
    "by-path": "external data on disk, by path",
    "add": "`add_external_initializers`",
    "copied": "files in memory",
    "borrowed": "files in memory, borrowed",
    "trimmed": "files in memory, borrowed and trimmed",
}
_LAYER_K, _LAYER_N, _RUNS = 4096, 8192, 5


def _layer_bytes() -> tuple[int, int]:
    """Bytes of one layer's weight and scales."""
    return _LAYER_K * _LAYER_N // 2, _LAYER_K * _LAYER_N // 32 * 4


def _status(key: str) -> float:
    """A figure of /proc/self/status in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 / _MB for line in status if line.startswith(key))


def _measure_way(way: str, folder: Path, layers: int) -> dict[str, float]:
    """Load `layers` products in this process; what it took, beyond what was there before."""
    weight, scales = _layer_bytes()
    data = folder / "data"
    tensors = []
    for layer in range(layers):
        start = layer * (weight + scales)
        tensors.append(_external(f"b{layer}", "data", start, weight, TensorProto.UINT8, (_LAYER_N, _LAYER_K // 32, 16)))
        tensors.append(_external(f"s{layer}", "data", start + weight, scales, dims=(scales // 4,)))
    nodes = [_nbits_node(["x", f"b{layer}", f"s{layer}"], f"y{layer}", _LAYER_K, _LAYER_N) for layer in range(layers)]
    nodes.append(helper.make_node("Sum", [f"y{layer}" for layer in range(layers)], ["y"]))
    model = _model(nodes, tensors, [1, _LAYER_K]).SerializeToString()
    options = _options(**{PARALLEL_KEY: "1"})
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
        _in_memory(options, data=mapping)
    _session(_identity())
    before, start_time = (_status("RssAnon"), _status("VmRSS")), time.perf_counter()
    finished = threading.Event()
    peak_anonymous = before[0]

    def watch() -> None:
        nonlocal peak_anonymous
        while not finished.wait(0.01):
            if way == "trimmed":
                mapping.madvise(mmap.MADV_DONTNEED)
            peak_anonymous = max(peak_anonymous, _status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    session = _session(model, options)
    seconds = time.perf_counter() - start_time
    finished.set()
    thread.join()
    peak_anonymous = max(peak_anonymous, _status("RssAnon"))
    checksum = float(np.abs(_y(session, np.ones((1, _LAYER_K), np.float32))).sum())
    return {
        "init": seconds,
        "peak": _status("VmHWM") - before[1],
        "anonymous": peak_anonymous - before[0],
        "after": _status("RssAnon") - before[0],
        "checksum": checksum,
    }


def _figures(megabytes: int) -> list[str]:
    """A Markdown table of WAYS, medians of interleaved fresh processes."""
    layers = max(1, round(megabytes * _MB / sum(_layer_bytes())))
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="contracts-") as temporary:
        rng = np.random.default_rng(6)
        with open(Path(temporary) / "data", "wb") as file:
            for _ in range(layers):
                rng.integers(0, 256, _layer_bytes()[0], np.uint8).tofile(file)
                rng.random(_layer_bytes()[1] // 4, np.float32).tofile(file)
        for _ in range(_RUNS):
            for way in WAYS:
                command = [sys.executable, "-m", "conformance.contracts", "--way", way, temporary, str(layers)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    sums = {run["checksum"] for way in WAYS for run in runs[way]}
    size = layers * sum(_layer_bytes()) / _MB
    lines = [
        f"{size:.0f} MB of MatMulNBits operands in a file, accuracy level 4, pre-packed in parallel on 2 threads; medians "
        f"of {_RUNS} fresh, interleaved processes; MB beyond what the process had before; results "
        f"{'equal' if len(sums) == 1 else '**differ**'}.",
        "",
        "| way | init s | peak MB | peak anonymous MB | anonymous afterwards MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, title in WAYS.items():
        figures = {key: median(run[key] for run in runs[way]) for key in runs[way][0]}
        cells = [title, f"{figures['init']:.2f}", *(f"{figures[key]:.0f}" for key in ("peak", "anonymous", "after"))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


# The command


def _checked(contract: Contract) -> tuple[bool, str]:
    """Whether it holds, and what was seen."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        try:
            return True, contract.run(Path(folder))
        except BrokenError as error:
            return False, str(error)
        except Exception as error:  # whatever a release raises instead is a finding
            return False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check the contracts that the command line asks for; 1 if one is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="contracts whose name matches")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument(
        "--figures", type=int, nargs="?", const=500, metavar="MB", help="measure the ways of handing weights over"
    )
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.way:
        print(json.dumps(_measure_way(args.way[0], Path(args.way[1]), int(args.way[2]))))
        return 0
    # Refusals are expected; ONNX Runtime need not log them.
    with suppress(AttributeError):
        ort.set_default_logger_severity(4)
    lines = [
        f"# Contracts with onnxruntime {ort.__version__}",
        "",
        "| contract | verdict | seen | relied on |",
        "| --- | --- | --- | --- |",
    ]
    passed = failed = 0
    for contract in CONTRACTS:
        if not fnmatch.fnmatch(contract.name, args.only):
            continue
        holds, seen = _checked(contract)
        passed, failed = passed + holds, failed + (not holds)
        print(f"{'ok  ' if holds else 'FAIL'} {contract.name}: {seen}", flush=True)
        cells = [contract.name, "pass" if holds else "**FAIL**", seen.replace("|", "\\|"), contract.relied_on]
        lines.append(f"| {' | '.join(cells)} |")
    if args.figures is not None:
        table = _figures(args.figures)
        print("\n".join(["", *table, ""]))
        lines += ["", "## Ways of handing weights over", "", *table]
    closing = f"{passed} passed, {failed} failed"
    print(closing)
    if args.markdown:
        args.markdown.write_text("\n".join([*lines, "", closing, ""]))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
