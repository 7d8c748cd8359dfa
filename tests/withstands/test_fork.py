"""Pre-forking servers: what a child may do while the parent has sessions, and threads that are making some."""

import os
from pathlib import Path

import pytest

from tests.support import python, save, stack

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def stored(tmp_path: Path) -> str:
    """Two weights, of which everything is packed, and one external file."""
    return str(save(stack(2, 128, element="int4"), tmp_path, "external"))


HELPERS = """
import faulthandler, os, sys, threading
import numpy as np
import onnxruntime as ort
from ort_qdq_plugin import Options, create_session, report_of

model, spill_dir = sys.argv[1:3]

def fed(session):
    return {"x": np.ones((3, session.get_inputs()[0].shape[1]), np.float32)}

def run(session):
    return session.run(None, fed(session))[0]

def in_child(work):
    # A child that waits for ever says where, and ends. Running finalizers at its end is more than stock ONNX Runtime can do
    # there: it waits for a thread that came with importing it.
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(30, exit=True)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child

def ended(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def forking(code: str, *arguments: object) -> None:
    done = python(HELPERS + code, *arguments, timeout=240)
    assert done.returncode == 0, done.stderr


SESSIONS_OF_ITS_OWN = """
def make(threads):
    session = create_session(model, options=Options(buffer="file", spill_dir=spill_dir, threads=threads))
    assert report_of(session).route == "borrowed"
    return session

def work():
    session = make(1)
    assert np.array_equal(run(session), wanted)
    session = make(3)
    assert np.array_equal(run(session), wanted)

parent = make(2)
wanted = run(parent)
for _ in range(2):
    ended(in_child(work))
    assert np.array_equal(run(parent), wanted)
    assert np.array_equal(run(make(2)), wanted)
"""


def test_a_forked_child_makes_sessions_of_its_own(stored: str, spill: Path) -> None:
    """And leaves the parent's alone."""
    forking(SESSIONS_OF_ITS_OWN, stored, spill)


PARENTS_SESSION = """
options = ort.SessionOptions()
options.intra_op_num_threads = 1
for session in (create_session(model, options), ort.InferenceSession(model, options)):
    wanted = run(session)
    def work():
        assert np.array_equal(run(session), wanted)
    for _ in range(2):
        ended(in_child(work))
    assert np.array_equal(run(session), wanted)
"""


def test_a_session_of_the_parents_runs_in_the_child_as_stock_ones_do(stored: str, spill: Path) -> None:
    forking(PARENTS_SESSION, stored, spill)


SERVER = """
import random, time
route, first = sys.argv[3:5]
shared = ort.SessionOptions()
shared.log_severity_level = 4
ort.set_default_logger_severity(4)
shared.intra_op_num_threads = 2
if route == "by path":
    shared.add_provider("CPUExecutionProvider", {})

def make():
    options = Options(buffer="file", spill_dir=spill_dir, threads=3, strict=True)
    session = create_session(model, shared, None if route == "by path" else ["CPUExecutionProvider"], options=options)
    assert report_of(session).route == route, report_of(session)
    return session

def work():
    results = [run(make()) for _ in range(2)]
    assert wanted is None or np.array_equal(results, [wanted, wanted])

wanted = None if first == "before" else run(make())
stop = threading.Event()
def create():
    while not stop.is_set():
        run(make())
threads = [threading.Thread(target=create) for _ in range(3)]
for thread in threads:
    thread.start()
try:
    children = []
    for _ in range(8):
        time.sleep(random.random() * 0.02)
        children.append(in_child(work))
        if len(children) == 2:
            ended(children.pop(0))
    for child in children:
        ended(child)
finally:
    stop.set()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("first", ["before", "after"])
@pytest.mark.parametrize("route", ["borrowed", pytest.param("by path", marks=pytest.mark.slow)])
def test_children_forked_while_threads_create_sessions(stored: str, spill: Path, route: str, first: str) -> None:
    """Neither waits for a thread that only the parent has, `before` or `after` the first session of all."""
    forking(SERVER, stored, spill, route, first)


FIRST = """
import time
import ort_qdq_plugin

importing = threading.Event()
class Slow:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == module:
            importing.set()
            time.sleep(0.2)

way, module = sys.argv[3:5]
assert module not in sys.modules
sys.meta_path.insert(0, Slow)
if way == "activate":
    ort_qdq_plugin.activate()
options = ort.SessionOptions()
options.intra_op_num_threads = 1

def work():
    if way == "activate":
        run(ort.InferenceSession(model, options))
    else:
        str(ort_qdq_plugin.report_of(ort_qdq_plugin.create_session(model, options)))

thread = threading.Thread(target=work)
thread.start()
assert importing.wait(60)
ended(in_child(work))
thread.join()
"""


@pytest.mark.parametrize(
    ("way", "module"),
    [
        ("activate", "load.start"),
        ("activate", "load.journey"),
        ("create_session", "session"),
        ("create_session", "load.plan"),
    ],
)
def test_a_child_forked_while_a_thread_imports_what_it_needs(stored: str, spill: Path, way: str, module: str) -> None:
    """In the first session of all, which no module of this package is imported for before."""
    head = HELPERS.replace("from ort_qdq_plugin import Options, create_session, report_of\n", "")
    done = python(head + FIRST, stored, spill, way, f"ort_qdq_plugin.{module}", timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr


POOL = """
import multiprocessing
from ort_qdq_plugin import activate
activate(Options(buffer="file", spill_dir=spill_dir, strict=True))

def work(_):
    session = ort.InferenceSession(model)
    return report_of(session).route, run(session)

if __name__ == "__main__":
    parent = ort.InferenceSession(model)
    wanted = run(parent)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for route, result in pool.map_async(work, range(6)).get(timeout=100):
            assert route == "borrowed"
            assert np.array_equal(result, wanted)
    assert np.array_equal(run(parent), wanted)
"""


def test_a_pool_of_forked_processes(stored: str, spill: Path) -> None:
    forking(POOL, stored, spill)


SPILL_FILE = """
from ort_qdq_plugin.memory.buffer import make_buffers
from ort_qdq_plugin.memory.named_files import sweep
(buffer,) = make_buffers([1 << 16], "file", spill_dir, linkable=True)
buffer.array[:] = 7
buffer.link()
buffer.seal()

def work():
    sweep(spill_dir)
    del globals()["buffer"]
    session = create_session(model, by_path, options=Options(spill_dir=spill_dir, strict=True))
    assert report_of(session).route == "by path"

by_path = ort.SessionOptions()
by_path.add_provider("CPUExecutionProvider", {})
for _ in range(2):
    ended(in_child(work))
    sweep(spill_dir)
    assert os.listdir(spill_dir) == [os.path.basename(buffer.path)], "still this process's"
with open(buffer.path, "rb") as file:
    assert file.read() == bytes([7]) * (1 << 16)
buffer.discard()
"""


def test_spill_files_of_the_parent_stay_its_own(stored: str, spill: Path) -> None:
    """The child has the same open file, and so a share in its lock."""
    forking(SPILL_FILE, stored, spill)
