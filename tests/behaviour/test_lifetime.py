"""How long borrowed memory lives: as long as anything of the session can read it, and no longer."""

import gc
import itertools
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.load import prepare
from ort_qdq_plugin.model.releases import LENT_FILES, has
from ort_qdq_plugin.ort import buffers
from tests import support
from tests.lacking import has as has_system
from tests.support import CPU, IN_PLACE, ROOT, added_provider, made_report, mapped, python, quiet, result, save, stack, x_of

Get = Callable[[], Any]
"""Something that a part of a session still gives."""


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No descriptor, nothing that is kept for a session, and no mapping."""
    before = support.settled_descriptors(), len(buffers._kept)
    yield
    assert (support.descriptors(), len(buffers._kept)) == before
    assert not list(tmp_path.glob("*.spill"))
    assert not has_system("/proc") or not mapped(tmp_path)


@pytest.fixture
def packed(tmp_path: Path) -> str:
    """Two weights, of which everything is packed, and one external file."""
    return str(save(stack(2, 128, element="int4"), tmp_path, "external"))


@pytest.fixture(params=["packed", "in place"])
def stored(request: pytest.FixtureRequest, packed: str, tmp_path: Path) -> str:
    """That model, or one with two weights all of whose bytes are used where they are."""
    in_place = stack(2, 256, n_major=True)
    return packed if request.param == "packed" else str(save(in_place, tmp_path, "external", "in_place"))


def borrowed(stored: str | bytes, folder: Path) -> tuple[ort.InferenceSession, weakref.ref[Any]]:
    """A session with a spill file in `folder`, and a reference to the mapping of its first buffer."""
    if not has(LENT_FILES):
        pytest.skip("this ONNX Runtime copies what it is given in memory, and nothing of it lives on")
    options = Options(buffer="file", spill_dir=folder)
    session: Any = create_session(stored, quiet(), CPU, options=options)
    assert made_report(session).route == "borrowed"
    buffers = list(session._ort_qdq_state.prepared.buffers.values())
    assert mapped(folder)
    return session, weakref.ref(buffers[0])


def test_dropping_the_session_releases_everything(stored: str, tmp_path: Path) -> None:
    session, buffer = borrowed(stored, tmp_path)
    result(session)
    del session
    assert buffer() is None, "without waiting for the garbage collector"


@IN_PLACE
def test_the_callers_bytes_are_released(tmp_path: Path) -> None:
    data = save(stack(2, 256, n_major=True), tmp_path, "bytes")
    session = create_session(data, quiet(), CPU)
    assert any(buffer is data for kept in buffers._kept for buffer in kept.buffers)
    del data
    gc.collect()
    assert np.isfinite(result(session)).all()


def binding_of(session: ort.InferenceSession) -> Get:
    binding = session.io_binding()
    binding.bind_cpu_input("x", x_of(session)["x"])
    binding.bind_output("y")
    native = binding._session  # what IOBinding itself holds
    return lambda: (native.run_with_iobinding(binding._iobinding, None), binding.copy_outputs_to_cpu()[0])[1]


def native_of(session: ort.InferenceSession) -> Get:
    native, fed = session._sess, x_of(session)
    return lambda: native.run(["y"], fed, None)[0]


def method_of(session: ort.InferenceSession) -> Get:
    run, fed = session.run, x_of(session)
    return lambda: run(None, fed)[0]


def metadata_of(session: ort.InferenceSession) -> Get:
    inputs, meta = session.get_inputs(), session.get_modelmeta()
    return lambda: [inputs[0].name, *inputs[0].shape, meta.graph_name]


def results_of(session: ort.InferenceSession) -> Get:
    (value,) = session.run_with_ort_values(None, {"x": ort.OrtValue.ortvalue_from_numpy(x_of(session)["x"])})
    return lambda: value.numpy().copy()


@pytest.mark.parametrize("part", [binding_of, native_of, method_of, metadata_of, results_of])
def test_what_outlives_the_session(stored: str, part: Callable[[ort.InferenceSession], Get], tmp_path: Path) -> None:
    session, buffer = borrowed(stored, tmp_path)
    get = part(session)
    shape = session.get_inputs()[0].shape
    wanted: Any = ["x", *shape, "pattern"] if part is metadata_of else result(session)
    np.testing.assert_array_equal(get(), wanted)
    del session
    gc.collect()
    # What has the native session keeps the memory, whether or not it can still run.
    assert buffer() is not None or part is results_of
    np.testing.assert_array_equal(get(), wanted)
    del get
    gc.collect()
    assert buffer() is None


def test_cycles_are_collected(packed: str, tmp_path: Path) -> None:
    session, buffer = borrowed(packed, tmp_path)
    session.myself = [session, session.io_binding(), session._sess]
    del session
    gc.collect()
    assert buffer() is None


def test_set_providers_and_then_drop(packed: str, tmp_path: Path) -> None:
    kept = len(buffers._kept)
    session, buffer = borrowed(packed, tmp_path)
    wanted = result(session)
    for _ in range(3):
        session.set_providers(CPU)
        gc.collect()
        np.testing.assert_array_equal(result(session), wanted)
        assert len(buffers._kept) == kept + 1
    del session
    gc.collect()
    assert buffer() is None


@IN_PLACE
def test_a_failed_load_keeps_nothing(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime may refuse what we made of the model."""
    original = buffers.borrow

    def spoil(options: Any, buffers: Any) -> None:
        original(options, buffers)
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "nonsense")
        options.add_external_initializers(["no such name"], [ort.OrtValue.ortvalue_from_numpy(np.zeros(3, np.float32))])

    monkeypatch.setattr(prepare, "borrow", spoil)
    session = create_session(packed, quiet(), CPU, options=Options(buffer="file", spill_dir=tmp_path))
    assert made_report(session).route == "stock"
    assert np.isfinite(result(session)).all()
    gc.collect()
    assert not mapped(tmp_path)


def test_sessions_by_path_hold_no_file(packed: str, tmp_path: Path) -> None:
    session = create_session(packed, added_provider(), options=Options(spill_dir=tmp_path))
    assert made_report(session).route == "by path"
    if has_system("unnamed files"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.data", "model.onnx"]
    wanted = result(session)
    gc.collect()
    np.testing.assert_array_equal(result(session), wanted)


@pytest.mark.slow
def test_threads_that_make_run_and_drop(tmp_path: Path) -> None:
    models = [save(stack(2, 128, seed=str(seed), n_major=bool(seed % 2)), tmp_path, "bytes") for seed in range(4)]
    wanted = [result(create_session(model, quiet(), CPU)) for model in models]
    running = threading.active_count()
    options = quiet()
    options.intra_op_num_threads = 1

    def work(number: int) -> None:
        dice = random.Random(number)
        alive: list[tuple[int, ort.InferenceSession]] = []
        for _ in range(50):
            which = dice.randrange(len(models))
            ours = Options(buffer=dice.choice(["file", "memory"]), spill_dir=tmp_path, threads=dice.randint(1, 2))
            alive.append((which, create_session(models[which], options, CPU, options=ours)))
            if len(alive) > 3:
                del alive[dice.randrange(len(alive))]
            for index, session in alive:
                np.testing.assert_array_equal(result(session), wanted[index])

    with ThreadPoolExecutor(8) as executor:
        for future in [executor.submit(work, number) for number in range(8)]:
            future.result()
    gc.collect()
    assert threading.active_count() == running


@pytest.mark.slow
def test_one_session_run_by_many_threads_while_others_come_and_go(packed: str, tmp_path: Path) -> None:
    session, _ = borrowed(packed, tmp_path)
    wanted = result(session)
    stop = threading.Event()

    def run() -> int:
        count = 0
        while not stop.is_set():
            np.testing.assert_array_equal(result(session), wanted)
            count += 1
        return count

    with ThreadPoolExecutor(3) as executor:
        running = [executor.submit(run) for _ in range(3)]
        for _ in range(20):
            other, _ = borrowed(packed, tmp_path)
            np.testing.assert_array_equal(result(other), wanted)
            del other
        stop.set()
        assert all(future.result() for future in running)


@pytest.mark.slow
def test_a_short_soak_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "conformance.soak", "--cycles", "60", "--no-stock", "--tolerance", "0.25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


EXIT = """
import sys, threading
import numpy as np
from ort_qdq_plugin import Options, create_session, report_of
session = create_session(sys.argv[1], options=Options(buffer="file"))
assert report_of(session).fused
x = {"x": np.ones((1024, session.get_inputs()[0].shape[1]), np.float32)}
started = threading.Event()
run = session.run
if sys.argv[3] == "native":
    native = session._sess
    run = lambda _, fed: native.run(["a40"], fed, None)
    del session
def forever():
    while True:
        run(None, x)
        started.set()
for _ in range(int(sys.argv[2])):
    threading.Thread(target=forever, daemon=True).start()
    started.wait()
if sys.argv[3] == "module":
    sys.keep = session
print("end", flush=True)
"""


@pytest.mark.parametrize("where", ["main", "module"])
def test_the_interpreter_ends_quietly(stored: str, where: str) -> None:
    done = python(EXIT, stored, 0, where)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.fixture
def reading_in_place(tmp_path: Path) -> str:
    """A model that reads borrowed memory in every run, and for most of it: a large addend is not pre-packed."""
    model = stack(1, 512)
    addend = numpy_helper.from_array(np.ones((1024, 512), np.float32), "addend")
    model.graph.initializer.append(addend)
    for number in range(40):
        model.graph.node.append(helper.make_node("Add", [f"a{number}" if number else "y", "addend"], [f"a{number + 1}"]))
    model.graph.output[0].name = "a40"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1024
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1024
    return str(save(model, tmp_path, "external"))


ENDS = list(itertools.product((1, 3), ("main", "module", "native")))
LONG = [pytest.param(*end, marks=pytest.mark.long) for end in ENDS[:-1]]


@pytest.mark.parametrize(("daemons", "where"), [ENDS[-1], *LONG])
def test_no_memory_goes_while_daemon_threads_still_run(reading_in_place: str, daemons: int, where: str) -> None:
    """A thread that comes back from a run after the interpreter's end is ended by it, which std::terminate takes for an
    error; one still running when ONNX Runtime's own objects go says that a node failed. Both are so with stock, too
    (Python up to 3.13, pybind11). A fault of memory it must never be, nor an exception of this package."""
    for _ in range(4):
        done = python(EXIT, reading_in_place, daemons, where)
        assert done.returncode in (0, -signal.SIGABRT)
        assert done.stdout == "end\n"
        assert "Traceback" not in done.stderr, done.stderr


LOADING_AT_EXIT = """
import sys, threading
import onnxruntime as ort
from ort_qdq_plugin import Options, create_session
shared = ort.SessionOptions()
made = threading.Semaphore(0)
def forever():
    while True:
        session = create_session(sys.argv[1], shared, options=Options(buffer="file", spill_dir=sys.argv[2], threads=2))
        made.release()
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
for _ in range(6):
    made.acquire()
print("end", flush=True)
"""


@pytest.mark.slow
def test_the_interpreter_ends_while_daemon_threads_load(packed: str, empty: Path) -> None:
    """Never with a fault of memory; std::terminate is what stock does, too."""
    for _ in range(4):
        done = python(LOADING_AT_EXIT, packed, empty)
        assert done.returncode in (0, -signal.SIGABRT)
        assert done.stdout == "end\n"
    assert not list(empty.iterdir())
