"""Handing buffers over: what ONNX Runtime does with ours, and what we do with the caller's options."""

from __future__ import annotations

import gc
import mmap
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ort_qdq_plugin.memory import handover
from ort_qdq_plugin.memory.buffer import PackedBuffer, make_buffers
from ort_qdq_plugin.memory.handover import (
    Places,
    added_providers,
    borrow,
    by_path,
    copy_loses_something,
    keep_until_destroyed,
    private_options,
    trimming,
)
from ort_qdq_plugin.model.graph import domains, model_scope
from ort_qdq_plugin.model.skeleton import refer
from ort_qdq_plugin.model.tensors import FileSource, MemorySource, StoredTensor
from ort_qdq_plugin.options import config_entry
from tests.support import CPU, added_provider, mapped, quiet

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
COUNT = 2048


def make_buffer(size: int, kind: str, spill_dir: str | None) -> PackedBuffer:
    (buffer,) = make_buffers([size], kind, spill_dir)
    return buffer


def adding(location: str, offset: int = 0) -> bytes:
    """y = x + w, with w where it is said."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[COUNT])
    refer(tensor, location, offset, COUNT * 4)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [COUNT]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [tensor])
    return bytes(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString())


def plus(session: ort.InferenceSession) -> float:
    return float(session.run(None, {"x": np.zeros(COUNT, np.float32)})[0][7])


def test_a_private_copy_says_what_the_original_does() -> None:
    options = quiet()
    options.add_session_config_entry("session.some", "value")
    options.add_free_dimension_override_by_name("m", 3)
    options.intra_op_num_threads = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.enable_cpu_mem_arena = False
    options.logid = "mine"
    copy = private_options(options)
    assert copy.get_session_config_entry("session.some") == "value"
    for name in ("intra_op_num_threads", "graph_optimization_level", "enable_cpu_mem_arena", "logid", "log_severity_level"):
        assert getattr(copy, name) == getattr(options, name)
    copy.add_session_config_entry("session.other", "value")
    assert config_entry(options, "session.other") is None
    copy.intra_op_num_threads = 1
    assert options.intra_op_num_threads == 3


def test_a_private_copy_leaves_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = quiet()
    options.enable_profiling = True
    assert private_options(options).enable_profiling
    assert not list(tmp_path.iterdir())


def test_what_a_copy_loses() -> None:
    def loses(options: ort.SessionOptions | None) -> bool:
        return copy_loses_something(options, model, domains(model_scope(model)))

    model = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 21)])
    assert not loses(None)
    assert not loses(quiet())
    assert loses(added_provider())
    for domain in ("", "ai.onnx.ml", "com.microsoft"):
        model.graph.node.append(helper.make_node("Op", [], [f"y{domain}"], domain=domain))
    assert not loses(quiet())
    branch = helper.make_graph([helper.make_node("f", [], ["v"], domain="test.custom")], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch))
    assert loses(quiet())
    function = helper.make_function("test.custom", "f", [], [], [], [])
    model.functions.append(function)
    assert not loses(quiet())
    function.node.append(helper.make_node("g", [], [], domain="test.library"))
    model.functions.append(function)
    assert loses(quiet())


def test_added_providers() -> None:
    assert added_providers(added_provider()) == ("CPUExecutionProvider",)


def test_asking_for_added_providers_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = added_provider()
    options.enable_profiling = True
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    added_providers(options)
    assert not list(tmp_path.iterdir())


def test_borrowed_means_in_place() -> None:
    """A write to the buffer after the load shows in the result."""
    buffer = make_buffer(COUNT * 4 + 64, "file", None)
    buffer.array[64:].view(np.float32)[:] = 5.0
    places = Places(False, [buffer])
    (location,) = places.buffers
    options = quiet()
    borrow(options, places.buffers)
    session = ort.InferenceSession(adding(location, 64), options, providers=CPU)
    assert plus(session) == 5.0
    buffer.array[64:].view(np.float32)[:] = 6.0
    assert plus(session) == 6.0
    buffer.trim(0, COUNT * 4)
    assert plus(session) == 6.0
    del session


def test_borrowing_keeps_what_the_caller_said_of_pre_packing() -> None:
    for said in (None, "0", "1"):
        options = quiet()
        if said is not None:
            options.add_session_config_entry(PARALLEL_KEY, said)
        borrow(options, {})
        assert config_entry(options, PARALLEL_KEY) == (said or "1")


def test_places_borrowed(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(bytes(100) + np.full(COUNT, 3, np.float32).tobytes())
    source = FileSource(str(tmp_path / "w.data"))
    in_file = StoredTensor("w", TensorProto.FLOAT, (COUNT,), source, 100, COUNT * 4)
    small = StoredTensor("s", TensorProto.FLOAT, (2,), MemorySource(b"12345678"), 0, 8)
    in_memory = StoredTensor("m", TensorProto.FLOAT, (COUNT,), MemorySource(bytes(COUNT * 4)), 0, COUNT * 4)
    places = Places(False, [])
    protos = [TensorProto(name="w", data_type=1) for _ in range(4)]
    for proto, stored in zip(protos, (in_file, in_file, small, in_memory), strict=True):
        places.put(proto, stored)
    first, again, inline, memory = protos
    assert [entry.value for entry in first.external_data] == [entry.value for entry in again.external_data]
    assert inline.raw_data == b"12345678"
    assert inline.data_location == TensorProto.DEFAULT
    assert set(places.buffers) == {first.external_data[0].value, memory.external_data[0].value}
    assert len(places.mappings) == 1
    assert isinstance(places.mappings[0], mmap.mmap)


def test_places_by_path(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(np.full(COUNT, 3, np.float32).tobytes())
    source = FileSource(str(tmp_path / "w.data"))
    places = Places(True, [])
    proto = TensorProto(name="w", data_type=1)
    places.put(proto, StoredTensor("w", TensorProto.FLOAT, (COUNT,), source, 0, COUNT * 4))
    assert not places.buffers
    options = quiet()
    with by_path(options):
        session = ort.InferenceSession(adding(proto.external_data[0].value), options, providers=CPU)
    assert plus(session) == 3.0


@pytest.mark.parametrize("before", [{}, {FOLDER_KEY: "/tmp", PARALLEL_KEY: "0"}, {PARALLEL_KEY: "1"}])
def test_by_path_puts_everything_back(before: dict[str, str]) -> None:
    options = quiet()
    for key, value in before.items():
        options.add_session_config_entry(key, value)
    with suppress(KeyboardInterrupt), by_path(options):
        assert config_entry(options, FOLDER_KEY) == "/"
        assert config_entry(options, PARALLEL_KEY) == before.get(PARALLEL_KEY, "1")
        raise KeyboardInterrupt
    for key in (FOLDER_KEY, PARALLEL_KEY, DIRECT_KEY):
        assert (config_entry(options, key) or None) == before.get(key)


def test_trimming_changes_no_byte() -> None:
    buffer = make_buffer(1 << 20, "file", None)
    data = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    buffer.write(0, data)
    with trimming([buffer.mapping]):
        for _ in range(20):
            np.testing.assert_array_equal(buffer.array, data)
            time.sleep(0.005)
    np.testing.assert_array_equal(buffer.array, data)


def test_trimming_ends_with_its_block() -> None:
    buffer = make_buffer(1 << 20, "file", None)
    before = threading.active_count()
    with suppress(KeyboardInterrupt), trimming([buffer.mapping]):
        assert threading.active_count() == before + 1
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_trimming_drops_pages_from_the_process(tmp_path: Path) -> None:
    buffer = make_buffer(1 << 20, "file", str(tmp_path))
    with trimming([buffer.mapping]):
        assert buffer.array.sum() == 0
    smaps = Path("/proc/self/smaps").read_text().split(f"{tmp_path}/")[1]
    rss = next(line for line in smaps.splitlines() if line.startswith("Rss:"))
    assert int(rss.split()[1]) == 0


def test_buffers_are_kept_until_the_native_session_is_gone(tmp_path: Path) -> None:
    buffer = make_buffer(COUNT * 4, "file", str(tmp_path))
    places = Places(False, [buffer])
    (location,) = places.buffers
    options = quiet()
    borrow(options, places.buffers)
    session = ort.InferenceSession(adding(location), options, providers=CPU)
    gone = weakref.ref(buffer.mapping)
    keep_until_destroyed(session._sess, tuple(places.buffers.values()))
    del buffer, places
    gc.collect()
    native = session._sess
    del session
    gc.collect()
    assert gone() is not None
    assert mapped(tmp_path)
    del native
    gc.collect()
    assert gone() is None
    assert not mapped(tmp_path)


def test_at_exit_what_is_kept_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be unmapped by the interpreter's end, whichever module's names are cleared first."""
    mapping = mmap.mmap(-1, 4096)
    monkeypatch.setattr(handover, "_kept", {object(): (mapping, b"bytes" * 1000)})
    before = sys.getrefcount(mapping)
    handover._pin_for_good()
    assert sys.getrefcount(mapping) == before + 1
