"""Pre-forking servers that load before they fork: children run a session of the parent's."""

import os
from pathlib import Path

import pytest

from tests.support import python, save, stack
from tests.withstands.test_fork import HELPERS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

MAKES = """
import gc, signal, time

def made(threads, way="called", **settings):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in settings.items():
        setattr(options, name, value)
    if way == "called":
        return create_session(model, options)
    from ort_qdq_plugin import activate
    activate()
    return ort.InferenceSession(model, options)
"""


def forking(code: str, *arguments: object) -> str:
    done = python(HELPERS + MAKES + code, *arguments, timeout=170)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def deep(tmp_path: Path) -> str:
    """Many small nodes: much of a run's time is spent where other threads must not be interrupted."""
    return str(save(stack(60, 32, element="int4"), tmp_path, "external"))


UNDER_LOAD = """
forks, threads, way = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
session = made(threads, way)
x, wanted = fed(session)["x"], run(session)
stop = threading.Event()

def plainly():
    return session.run(None, {"x": x})[0]

def bound():
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0]

def with_values():
    return session.run_with_ort_values(None, {"x": ort.OrtValue.ortvalue_from_numpy(x)})[0].numpy()

def later():
    called, results = threading.Event(), []
    def call_back(outputs, _, error):
        results.extend(outputs)
        called.set()
    session.run_async(None, {"x": x}, call_back, None)
    assert called.wait(30)
    return results[0]

def keep_running(once):
    while not stop.is_set():
        assert np.array_equal(once(), wanted)

def work():
    for once in (plainly, bound, with_values):
        assert np.array_equal(once(), wanted)

ways = [plainly, bound, with_values, *([later] if threads > 1 else [])]
running = [threading.Thread(target=keep_running, args=(once,)) for once in ways]
for thread in running:
    thread.start()
try:
    children = []
    for _ in range(forks):
        time.sleep(0.001)
        children.append(in_child(work))
        if len(children) == 3:
            ended(children.pop(0))
    for child in children:
        ended(child)
finally:
    stop.set()
    for thread in running:
        thread.join()
"""


@pytest.mark.parametrize(
    ("forks", "threads", "way"),
    [
        (30, 1, "called"),
        (30, 2, "activated"),
        pytest.param(1000, 1, "called", marks=pytest.mark.long),
        pytest.param(200, 3, "called", marks=pytest.mark.slow),
    ],
)
def test_children_forked_while_threads_run_a_session_run_it_too(
    deep: str, spill: Path, forks: int, threads: int, way: str
) -> None:
    """Without what forks wait for, every third child or so waits for ever."""
    forking(UNDER_LOAD, deep, spill, forks, threads, way)


ENDS = """
session = made(4)
wanted = run(session)
for _ in range(3):
    child = os.fork()
    if not child:
        signal.alarm(30)
        assert np.array_equal(run(session), wanted)
        again = made(4)
        assert np.array_equal(run(again), wanted)
        del session
        gc.collect()
        sys.exit()
    ended(child)
    assert np.array_equal(run(session), wanted)
"""


def test_a_child_may_drop_what_it_inherits_and_end(deep: str, spill: Path) -> None:
    """Destroying the pool of a session with several threads crashes where they do not exist.

    ONNX Runtime's telemetry has to be off, as it is in these tests: it waits for a thread of the parent's.
    """
    forking(ENDS, deep, spill)


THREADS = """
session = made(3)
wanted = run(session)

def keep_running(done):
    done.append(all(np.array_equal(run(session), wanted) for _ in range(500)))

def work():
    done = []
    threads = [threading.Thread(target=keep_running, args=(done,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 3
    grandchild = os.fork()
    if not grandchild:
        signal.alarm(30)
        keep_running(done)
        os._exit(not done[-1])
    ended(grandchild)

ended(in_child(work))
"""


def test_threads_and_children_of_the_child_run_it(deep: str, spill: Path) -> None:
    forking(THREADS, deep, spill)


REFUSED = """
parallel = made(1, execution_mode=ort.ExecutionMode.ORT_PARALLEL, inter_op_num_threads=2)
alone = made(1, execution_mode=ort.ExecutionMode.ORT_PARALLEL, inter_op_num_threads=1)
session = made(2)
wanted = run(session)
assert np.array_equal(run(parallel), wanted)

def refused(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)

def work():
    assert "executes in parallel" in refused(run, parallel)
    assert "needs the session's threads" in refused(session.run_async, None, fed(session), lambda *_: None, None)
    assert np.array_equal(run(alone), wanted)
    assert np.array_equal(run(session), wanted)
    session.set_providers(["CPUExecutionProvider"])
    called = threading.Event()
    session.run_async(None, fed(session), lambda *_: called.set(), None)
    assert called.wait(30)
    assert "executes in parallel" in refused(run, parallel)

ended(in_child(work))
assert np.array_equal(run(parallel), wanted)
"""


def test_what_needs_threads_of_the_parents_is_refused(deep: str, spill: Path) -> None:
    """It would wait for ever. What the child creates itself has threads of its own."""
    forking(REFUSED, deep, spill)


MEMORY = """
def private():
    with open("/proc/self/smaps_rollup") as rollup:
        return 1024 * sum(int(line.split()[1]) for line in rollup if line.startswith("Private"))

before = private()
session = made(1)
wanted = run(session)
parent = private() - before

def work():
    assert np.array_equal(run(session), wanted)
    print(parent, private())
    sys.stdout.flush()

ended(in_child(work))
"""


def test_a_child_shares_the_weights(tmp_path: Path, spill: Path) -> None:
    model = save(stack(6, 1536, element="int4"), tmp_path, "external")
    parent, child = map(int, forking(MEMORY, model, spill).split())
    assert parent > 10 << 20
    assert child < parent / 2
