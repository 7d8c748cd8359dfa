"""SessionOptions: what a copy of them has, what their entries mean; and the paths that ONNX Runtime refuses and takes."""

import gc
import os
import tempfile
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper
from onnxruntime.capi import _pybind_state as native

from conformance.contracts.contract import (
    FOLDER_KEY,
    PARALLEL_KEY,
    borrowing,
    counted,
    expect,
    expect_equal,
    expect_refusal,
    identity_model,
    inline_tensor,
    load,
    mapping_of,
    model_of,
    options_with,
    result_of,
    sum_model,
    sum_of_file,
)
from conformance.drawing.canvas import Canvas
from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL


def native_sessions_copy_options(_folder: Path) -> str:
    """The options of a native session that was never initialized are an independent copy of those it was given, with config
    entries, plain attributes, free dimensions and added files, and outlive it (ort/copies.py, `private_options`)."""
    key = "session.qdq_matmulnbits_accuracy_level"
    options = options_with({key: "2"})
    options.inter_op_num_threads = 3
    options.enable_mem_pattern = False
    options.logid = "contract"
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_free_dimension_override_by_name("rows", 5)
    copy = _copied(options)
    gc.collect()
    expect(copy.get_session_config_entry(key) == "2", "a config entry is lost")
    for name in ("intra_op_num_threads", "inter_op_num_threads", "enable_mem_pattern", "logid", "graph_optimization_level"):
        expect(getattr(copy, name) == getattr(options, name), f"{name} is lost")
    expect(load(identity_model(["rows", 2]), copy).get_inputs()[0].shape == [5, 2], "a free dimension override is lost")
    copy.add_session_config_entry(PARALLEL_KEY, "1")
    copy.intra_op_num_threads = 7
    changed = "a change to the copy shows in the original"
    expect_refusal(lambda: options.get_session_config_entry(PARALLEL_KEY), changed)
    expect(options.intra_op_num_threads == 1, changed)
    mapping = mapping_of(counted())
    carried = _copied(borrowing(w=mapping))
    expect_equal(result_of(load(sum_of_file(), carried)), counted(), "a file in memory is lost")
    return "entries, attributes, free dimensions and files in memory"


def _copied(options: Any) -> Any:
    return native.InferenceSession(options, identity_model(), False, False).session_options


def copied_options_lose_providers_and_custom_operators(_folder: Path) -> str:
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
    otherwise = "custom operators are copied: no need to go by path for them"
    expect_refusal(lambda: load(model, _copied(options)), otherwise)
    return "both are lost"


def unset_config_entries_raise(_folder: Path) -> str:
    """get_session_config_entry raises RuntimeError for an entry that is not set (options.py, `config_entry`)."""
    seen = "RuntimeError"
    with suppress(RuntimeError):
        seen = f"it returns {ort.SessionOptions().get_session_config_entry(PARALLEL_KEY)!r}"
    expect(seen == "RuntimeError", seen)
    return seen


def _model_beside_its_data(folder: Path) -> Path:
    (folder / "data").write_bytes(counted().tobytes())
    path = folder / "model.onnx"
    path.write_bytes(sum_of_file("data"))
    return path


def empty_entries_count_as_unset(folder: Path) -> str:
    """The folder and the parallel pre-packing entries, once set and then put back to the empty string, behave as if they had
    never been set (ort/buffers.py, `by_path`)."""
    path = _model_beside_its_data(folder)
    options = options_with({FOLDER_KEY: "/", PARALLEL_KEY: "1"})
    expect_refusal(lambda: load(str(path), options), "the folder entry is not heeded for a path")
    for key in (FOLDER_KEY, PARALLEL_KEY):
        options.add_session_config_entry(key, "")
    expect_equal(result_of(load(str(path), options)), counted(), "by path: wrong values")
    inline = load(sum_model(inline_tensor("w", counted())), options)
    expect_equal(result_of(inline), counted(), "from bytes: wrong values")
    return "models by path and from bytes load"


def _fused(options: Any) -> dict[str, int] | None:
    """The attributes of the product that ONNX Runtime fuses with these options; None if it fuses none."""
    draft = Draft()
    dequantized = draft.dequantize("w", [64, 32], axis=1, block=PER_CHANNEL)
    draft.output(draft.node("MatMul", [draft.input("x", ["rows", 64]), dequantized], "y"), ["rows", 32])
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
        load(draft.model().SerializeToString(), options)
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    found = [{item.name: item.i for item in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
    return found[0] if found else None


def accuracy_level_and_block_size_have_defaults(_folder: Path) -> str:
    """ONNX Runtime refuses these entries if they are empty; "4" and "0" mean what it does without them, so that an entry can
    be put back (ort/keys.py, `entry_to_put_back`)."""
    defaults = {"session.qdq_matmulnbits_accuracy_level": "4", "session.qdq_matmulnbits_block_size": "0"}
    for key in defaults:
        expect_refusal(partial(_fused, options_with({key: ""})), f"{key}: an empty one is taken")
    plain = _fused(options_with())
    expect(plain is not None, "nothing is fused")
    expect(_fused(options_with(defaults)) == plain, "the product is fused otherwise")
    return f"without entries, and with these: {plain}"


def disabled_optimizers_are_separated_by_semicolons(_folder: Path) -> str:
    """optimization.disable_specified_optimizers has the names of optimizers between semicolons, as they are
    (load/request.py, `may_fuse`)."""
    key, name = "optimization.disable_specified_optimizers", "QDQSelectorActionTransformer"
    for value, fuses in ((name, False), (f"ConstantFolding;{name};", False), (f"a; {name}", True), (f"a,{name}", True)):
        expect((_fused(options_with({key: value})) is not None) is fuses, f"{value!r}: otherwise")
    return "as they are, spaces too"


def the_folder_entry_takes_the_root_directory(folder: Path) -> str:
    """A model given as bytes finds external data anywhere below the folder entry, also when that is the root directory
    (ort/buffers.py, `by_path`)."""
    (folder / "data").write_bytes(counted().tobytes())
    location = os.path.relpath(os.path.realpath(folder / "data"), os.sep)
    expect_equal(result_of(load(sum_of_file(location), options_with({FOLDER_KEY: os.sep}))), counted())
    return "a file in a temporary folder, by its path below /"


def external_files_by_path_may_be_unlinked(folder: Path) -> str:
    """Once a session exists, the external files that it was given by path may lose their names (session.py)."""
    path = _model_beside_its_data(folder)
    session = load(str(path))
    (folder / "data").unlink()
    path.unlink()
    expect_equal(result_of(session), counted())
    return "results stay"


def initializers_on_the_options_can_be_told(folder: Path) -> str:
    """A model whose external file exists loads, and one whose file does not fails with "External data path validation
    failed", unless the caller added initializers or files to the options: then both fail otherwise (ort/copies.py,
    `supplies_initializers`)."""
    (folder / "file").write_bytes(counted().tobytes())
    added = options_with({FOLDER_KEY: str(folder)})
    added.add_external_initializers(["v"], [ort.OrtValue.ortvalue_from_numpy(counted())])
    in_memory = options_with({FOLDER_KEY: str(folder)}, other=counted().tobytes())
    none = options_with({FOLDER_KEY: str(folder)})
    expect_equal(result_of(load(sum_of_file("file"), _copied(none))), counted(), "another sum")
    for name, options in (("added", added), ("files", in_memory)):
        expect_refusal(partial(load, sum_of_file("file"), _copied(options)), f"{name}: it loads from a file that exists")
    for name, options, expected in (("none", none, True), ("added", added, False), ("files", in_memory, False)):
        said = expect_refusal(partial(load, sum_of_file("no-such-file"), _copied(options)), f"{name}: it loads")
        expect(("External data path validation failed" in said) is expected, f"{name}: {said}")
    return "by whether a probing model loads, and by the error where it does not"


def external_data_outside_the_folder_is_refused(folder: Path) -> str:
    """ONNX Runtime refuses absolute locations, `..` and symbolic links out of the model's folder; handing a file over in
    memory skips that check, so that this package makes it itself (model/tensors.py, `ExternalFiles`)."""
    inside = folder / "inside"
    inside.mkdir()
    outside = folder / "outside"
    outside.write_bytes(counted().tobytes())
    (inside / "link").symlink_to(outside)
    model = inside / "model.onnx"
    for location in (str(outside), "../outside", "link"):
        model.write_bytes(sum_of_file(location))
        expect_refusal(lambda: load(str(model)), f"{location} is accepted")
    return "absolute, .. and a symbolic link"


def links_inside_the_folder_are_accepted(folder: Path) -> str:
    """Symbolic links are fine while they stay in the model's real folder, as in Hugging Face's cache, where the model and
    its data are both links to neighbours elsewhere (model/tensors.py, `ExternalFiles`)."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "d1").write_bytes(counted().tobytes())
    (blobs / "m1").write_bytes(sum_of_file("model.onnx.data"))
    (snapshot / "model.onnx").symlink_to("../../blobs/m1")
    (snapshot / "model.onnx.data").symlink_to("../../blobs/d1")
    expect_equal(result_of(load(str(snapshot / "model.onnx"))), counted())
    (blobs / "link").symlink_to("d1")
    (blobs / "model.onnx").write_bytes(sum_of_file("link"))
    expect_equal(result_of(load(str(blobs / "model.onnx"))), counted(), "a link to a neighbour: wrong values")
    return "links to neighbours, and a model and its data linked from another folder"
