"""SessionOptions: what a copy of them has, and what their entries mean."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi import _pybind_state as native

from conformance.contracts.contract import BrokenError, Chapter, expect
from conformance.contracts.loading import (
    DIRECT_KEY,
    FOLDER_KEY,
    PARALLEL_KEY,
    counted,
    elsewhere,
    identity_model,
    inline_tensor,
    last_sentence,
    load,
    mapping_of,
    model_of,
    options_with,
    refusal_of,
    result_of,
    sum_model,
    with_files,
)
from conformance.drawing.canvas import Canvas

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


@CHAPTER.contract
def _native_sessions_copy_options(_folder: Path) -> str:
    """The options of a native session that was never initialized are an independent copy of those it was given, with config
    entries, plain attributes, free dimensions and added files, and outlive it (ort/copies.py, `private_options`)."""
    options = options_with(**{"session.qdq_matmulnbits_accuracy_level": "2"})
    options.inter_op_num_threads = 3
    options.enable_mem_pattern = False
    options.logid = "contract"
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_free_dimension_override_by_name("rows", 5)
    copy = _copied(options)
    gc.collect()
    expect(copy.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "2", "a config entry is lost")
    for name in ("intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern", "logid", "graph_optimization_level"):
        expect(getattr(copy, name) == getattr(options, name), f"{name} is lost")
    expect(load(identity_model(["rows", 2]), copy).get_inputs()[0].shape == [5, 2], "a free dimension override is lost")
    copy.add_session_config_entry(PARALLEL_KEY, "1")
    copy.intra_op_num_threads = 7
    said = refusal_of(lambda: options.get_session_config_entry(PARALLEL_KEY))
    expect(said is not None and options.intra_op_num_threads == 1, "a change to the copy shows in the original")
    mapping = mapping_of(counted())
    carried = _copied(with_files(options_with(**{DIRECT_KEY: "1"}), w=mapping))
    y = result_of(load(sum_model(elsewhere("w", "w")), carried))
    expect(np.array_equal(y, counted()), "a file in memory is lost")
    return "entries, attributes, free dimensions and files in memory"


def _copied(options: Any) -> Any:
    return native.InferenceSession(options, identity_model(), False, False).session_options


@CHAPTER.contract
def _copied_options_lose_providers_and_custom_operators(_folder: Path) -> str:
    """Such a copy does not have added providers (has_providers tells) or custom-op libraries: those models go by path
    (ort/copies.py, `copy_loses_something`)."""
    options = options_with()
    options.add_provider("CPUExecutionProvider", {})
    expect(options.has_providers(), "has_providers does not tell of an added provider")
    expect(not _copied(options).has_providers(), "added providers are copied: no need to go by path for them")
    if find_spec("onnxruntime_extensions") is None:
        return "providers are; operators of other libraries are not looked at, onnxruntime-extensions is not installed"
    from onnxruntime_extensions import get_library_path

    options = options_with()
    options.register_custom_ops_library(get_library_path())
    canvas = Canvas()
    canvas.nodes.append(helper.make_node("NegPos", ["x"], ["y", "z"], domain="ai.onnx.contrib"))
    model = model_of(canvas, "y")
    load(model, options)
    said = refusal_of(lambda: load(model, _copied(options)))
    expect(said is not None, "custom operators are copied: no need to go by path for them")
    return "both are lost"


@CHAPTER.contract
def _unset_config_entries_raise(_folder: Path) -> str:
    """get_session_config_entry raises RuntimeError for an entry that is not set (options.py, `config_entry`)."""
    try:
        value = ort.SessionOptions().get_session_config_entry(PARALLEL_KEY)
    except RuntimeError:
        return "RuntimeError"
    raise BrokenError(f"it returns {value!r}")


@CHAPTER.contract
def _empty_entries_count_as_unset(folder: Path) -> str:
    """The folder and the parallel pre-packing entries, once set and then put back to the empty string, behave as if they had
    never been set (ort/buffers.py, `by_path`)."""
    (folder / "data").write_bytes(counted().tobytes())
    path = folder / "model.onnx"
    path.write_bytes(sum_model(elsewhere("w", "data")))
    options = options_with(**{FOLDER_KEY: "/", PARALLEL_KEY: "1"})
    expect(refusal_of(lambda: load(str(path), options)) is not None, "the folder entry is not heeded for a path")
    for key in (FOLDER_KEY, PARALLEL_KEY):
        options.add_session_config_entry(key, "")
    expect(np.array_equal(result_of(load(str(path), options)), counted()), "by path: wrong values")
    inline = sum_model(inline_tensor("w", counted()))
    expect(np.array_equal(result_of(load(inline, options)), counted()), "from bytes: wrong values")
    return "models by path and from bytes load"


@CHAPTER.contract
def _the_folder_entry_takes_the_root_directory(folder: Path) -> str:
    """A model given as bytes finds external data anywhere below the folder entry, also when that is the root directory
    (ort/buffers.py, `by_path`)."""
    (folder / "data").write_bytes(counted().tobytes())
    location = os.path.relpath(os.path.realpath(folder / "data"), os.sep)
    options = options_with(**{FOLDER_KEY: os.sep})
    y = result_of(load(sum_model(elsewhere("w", location)), options))
    expect(np.array_equal(y, counted()), "wrong values")
    return "a file in a temporary folder, by its path below /"


@CHAPTER.contract
def _external_files_by_path_may_be_unlinked(folder: Path) -> str:
    """Once a session exists, the external files that it was given by path may lose their names (session.py)."""
    (folder / "data").write_bytes(counted().tobytes())
    path = folder / "model.onnx"
    path.write_bytes(sum_model(elsewhere("w", "data")))
    session = load(str(path))
    (folder / "data").unlink()
    path.unlink()
    expect(np.array_equal(result_of(session), counted()), "wrong values")
    return "results stay"


@CHAPTER.contract
def _initializers_on_the_options_can_be_told(_folder: Path) -> str:
    """A model whose external file does not exist fails with "External data path validation failed", unless the caller added
    initializers or files to the options: then it fails otherwise (ort/copies.py, `supplies_initializers`)."""
    model = sum_model(elsewhere("w", "no-such-file"))
    added = options_with()
    added.add_external_initializers(["v"], [ort.OrtValue.ortvalue_from_numpy(counted())])
    in_memory = with_files(options_with(), other=counted().tobytes())
    for name, options, expected in (("none", options_with(), True), ("added", added, False), ("files", in_memory, False)):
        said = refusal_of(lambda options=options: load(model, _copied(options)))  # type: ignore[misc]
        expect(said is not None, f"{name}: it loads")
        expect(("External data path validation failed" in (said or "")) is expected, f"{name}: {last_sentence(said or '')}")
    return "by the error that a probing model gives"
