"""Handing buffers over: ONNX Runtime uses ours in place, as long as its session lives."""

import contextlib
import gc
import os
import time
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto
from onnx.parser import parse_model

from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.memory.external_data import ExternalData
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.ort import buffers
from ort_qdq_plugin.ort.buffers import borrow, by_path, keep_until_destroyed, trimming
from ort_qdq_plugin.ort.copies import private_options
from ort_qdq_plugin.ort.keys import config_entry
from ort_qdq_plugin.system.platform import host
from tests.interrupting import Left, interrupted, settled
from tests.memory.test_buffer import make_buffer
from tests.support import CPU, IN_PLACE, mapped, python, quiet, with_entries

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
COUNT = 2048


def adding(location: str, offset: int = 0) -> bytes:
    """y = x + w, with w where it is said."""
    data = f'"location": "{location}", "offset": "{offset}", "length": "{COUNT * 4}"'
    graph = f"g (float[{COUNT}] x) => (float[{COUNT}] y) <float[{COUNT}] w = [{data}]> {{ y = Add (x, w) }}"
    return bytes(parse_model(f'<ir_version: 10, opset_import: ["": 21]> {graph}').SerializeToString())


def plus(session: ort.InferenceSession) -> float:
    return float(session.run(None, {"x": np.zeros(COUNT, np.float32)})[0][7])


def borrowing(buffer: PackedBuffer, offset: int) -> tuple[ort.InferenceSession, ExternalData]:
    """A session that adds what is at an offset of the buffer."""
    places, options = ExternalData(False, [buffer]), quiet()
    (location,) = places.buffers
    borrow(options, places.buffers)
    return ort.InferenceSession(adding(location, offset), options, providers=CPU), places


@IN_PLACE
def test_borrowed_means_in_place() -> None:
    """A write to the buffer after the load shows in the result."""
    buffer = make_buffer(COUNT * 4 + 64, "file", None)
    buffer.array[64:].view(np.float32)[:] = 5.0
    session, _ = borrowing(buffer, 64)
    assert plus(session) == 5.0
    buffer.array[64:].view(np.float32)[:] = 6.0
    assert plus(session) == 6.0
    buffer.trim(0, COUNT * 4)
    assert plus(session) == 6.0
    del session


@pytest.mark.parametrize("said", [None, "0", "1"])
def test_borrowing_keeps_what_the_caller_said_of_pre_packing(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_PARALLEL_BYTES", 0)
    callers = with_entries({} if said is None else {PARALLEL_KEY: said})
    options = private_options(callers)
    borrow(options, {}, callers)
    assert config_entry(options, PARALLEL_KEY) == (said or "1")


@pytest.mark.parametrize(("nbytes", "parallel"), [((31 << 20,), None), ((16 << 20, 16 << 20), "1")])
def test_little_is_pre_packed_by_one_thread(nbytes: tuple[int, ...], parallel: str | None) -> None:
    options = quiet()
    files = {f"{at}.bin": host.map_anonymous(size) for at, size in enumerate(nbytes)}
    borrow(options, files)
    assert config_entry(options, PARALLEL_KEY) == parallel
    options = quiet()
    borrow(options, files, None, 1 << 20)
    assert config_entry(options, PARALLEL_KEY) is None


@pytest.mark.needs("one root")
def test_places_by_path(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(np.full(COUNT, 3, np.float32).tobytes())
    source, places, options = FileSource(str(tmp_path / "w.data")), ExternalData(True, []), quiet()
    proto = TensorProto(name="w", data_type=1)
    places.put(proto, StoredTensor("w", TensorProto.FLOAT, (COUNT,), source, 0, COUNT * 4))
    assert not places.buffers
    options = quiet()
    sessions: list[ort.InferenceSession] = []
    model = adding(proto.external_data[0].value)
    by_path(options, {}, lambda: sessions.append(ort.InferenceSession(model, options, providers=CPU)))
    assert plus(sessions[0]) == 3.0


@pytest.mark.parametrize("before", [{}, {FOLDER_KEY: "/tmp", PARALLEL_KEY: "0"}, {PARALLEL_KEY: "1"}, {"some.key": "3"}])
@pytest.mark.needs("one root")
def test_by_path_puts_everything_back(before: dict[str, str]) -> None:
    options = with_entries(before)

    def create() -> None:
        assert config_entry(options, FOLDER_KEY) == "/"
        assert config_entry(options, PARALLEL_KEY) == before.get(PARALLEL_KEY, "1")
        assert config_entry(options, "some.key") == "7"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_path(options, {"some.key": "7"}, create)
    for key in (FOLDER_KEY, PARALLEL_KEY, DIRECT_KEY, "some.key"):
        assert (config_entry(options, key) or None) == before.get(key)


def rss_of(folder: Path) -> int:
    """How many bytes of the only mapping of a file in this folder are in this process."""
    (smaps,) = Path("/proc/self/smaps").read_text().split(f"{folder}/")[1:]
    return int(next(line for line in smaps.splitlines() if line.startswith("Rss:")).split()[1]) << 10


def threads() -> int:
    """How many this process has, ONNX Runtime's included."""
    return len(os.listdir("/proc/self/task"))


def test_trimming_changes_no_byte() -> None:
    buffer = make_buffer(1 << 20, "file", None)
    data = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    buffer.write(0, data)
    with trimming([buffer.mapping]):
        for _ in range(20):
            np.testing.assert_array_equal(buffer.array, data)
            time.sleep(0.005)
    np.testing.assert_array_equal(buffer.array, data)


@pytest.mark.needs("sizes")
def test_trimming_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_TRIM_BYTES", 1 << 20)
    before = threads()
    with suppress(KeyboardInterrupt), trimming([make_buffer(1 << 20, "file", None).mapping]):
        assert threads() == before + 1
        raise KeyboardInterrupt
    end = time.monotonic() + 10
    while threads() != before:  # what has ended is gone a moment later
        assert time.monotonic() < end


@pytest.mark.parametrize("nbytes", [(1 << 20) - 1, 1 << 20])
def test_the_heap_is_trimmed_for_many_shared_bytes(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_TRIM_BYTES", 1 << 20)
    monkeypatch.setattr(buffers, "_TRIM_HEAP_INTERVAL", 0.001)
    trimmed = list[None]()
    monkeypatch.setattr(host, "trim_heap", lambda: trimmed.append(None))
    end = time.monotonic() + 10
    with trimming([], nbytes):
        while nbytes >> 20 and len(trimmed) < 3:  # again and again
            assert time.monotonic() < end
    assert len(trimmed) >= 4 * (nbytes >> 20)
    assert bool(trimmed) == bool(nbytes >> 20)


@pytest.mark.needs("sizes")
def test_an_interrupt_at_any_place_ends_trimming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_TRIM_BYTES", 1 << 20)

    def work() -> None:
        with trimming([make_buffer(1 << 20, "file", str(tmp_path)).mapping]):
            pass

    before, number = Left.at_rest(tmp_path), 1
    while interrupted(number, work, lambda path: path in (buffers.__file__, contextlib.__file__)):
        assert settled(tmp_path, before) == before, number
        number += 1
    assert number > 20


@pytest.mark.needs("dropped pages")
@pytest.mark.needs("counted pages")
def test_without_a_thread_pages_are_dropped_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(buffers, "_TRIM_BYTES", 1 << 20)
    monkeypatch.setattr("_thread.start_new_thread", refuse)
    buffer = make_buffer(1 << 20, "file", str(tmp_path))
    with trimming([buffer.mapping]):
        assert buffer.array.sum() == 0
        assert rss_of(tmp_path) == 1 << 20
    assert rss_of(tmp_path) == 0


@pytest.mark.needs("dropped pages")
@pytest.mark.needs("counted pages")
def test_trimming_drops_pages_from_the_process(tmp_path: Path) -> None:
    buffer = make_buffer(1 << 20, "file", str(tmp_path))
    with trimming([buffer.mapping]):
        assert buffer.array.sum() == 0
    assert rss_of(tmp_path) == 0


def test_buffers_are_kept_until_the_native_session_is_gone(tmp_path: Path) -> None:
    buffer = make_buffer(COUNT * 4, "file", str(tmp_path))
    session, places = borrowing(buffer, 0)
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


def test_what_several_calls_keep_for_one_session() -> None:
    session = ort.InferenceSession(adding_nothing(), quiet(), providers=CPU)
    kept = [np.zeros(3), np.zeros(3)]
    gone = [weakref.ref(array) for array in kept]
    for array in kept:
        keep_until_destroyed(session._sess, (array,))
    del array, kept
    assert [reference() is None for reference in gone] == [False, False]
    del session
    assert [reference() is None for reference in gone] == [True, True]


def adding_nothing() -> bytes:
    graph = "g (float[1] x) => (float[1] y) { y = Identity (x) }"
    return bytes(parse_model(f'<ir_version: 10, opset_import: ["": 21]> {graph}').SerializeToString())


def test_an_interrupt_at_any_place_keeps_nothing_for_good() -> None:
    number = 1
    while True:
        session, kept = ort.InferenceSession(adding_nothing(), quiet(), providers=CPU), np.zeros(3)
        gone = weakref.ref(kept)
        keep = partial(keep_until_destroyed, session._sess, (kept,))
        was = interrupted(number, keep, lambda path: path == buffers.__file__)
        del keep
        del session, kept
        gc.collect()
        assert gone() is None, number
        if not was:
            break
        number += 1
    assert number > 3


AT_EXIT = """
import ctypes
import onnxruntime as ort
from ort_qdq_plugin.model.encoding import small_model
from ort_qdq_plugin.ort.buffers import keep_until_destroyed
class Buffer:
    def __del__(self, write=__import__("os").write):
        write(1, b"gone")
session = ort.InferenceSession(small_model("Identity"), providers=["CPUExecutionProvider"])
keep_until_destroyed(session._sess, (Buffer(),))
# What a daemon thread does that is inside of a run.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._sess))
"""


def test_what_is_kept_stays_when_the_interpreter_ends() -> None:
    """Whichever module's names are cleared first."""
    done = python(AT_EXIT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
