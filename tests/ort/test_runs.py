"""Runs that forks wait for, on sessions that are none: each runs what it is told to."""

import os
from pathlib import Path

import pytest

from tests.support import python, save, stack

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

HELPERS = """
import logging, os, signal, sys, threading, time
from ort_qdq_plugin.ort import runs

LONG, SHORT = 20.0, 0.2
runs._RUN_SECONDS = LONG

class Native:
    class session_options:
        execution_mode = inter_op_num_threads = None

class Stock:
    def __init__(self, action=lambda: None):
        action()
        self._sess = Native()
    def run(self, action=lambda: None):
        return action()
    def run_async(self, names, feed, callback, data):
        threading.Thread(target=feed, args=(callback,)).start()

class Session(Stock):
    _sess = None
    def __init__(self, action=lambda: None):
        with runs.creating(self):
            super().__init__(action)
    run = runs.counted(Stock, "run")
    run_async = runs.counted(Stock, "run_async")

def start(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread

def forked(work=lambda: None):
    # How long the fork took; what the child did was right.
    begin = time.monotonic()
    child = os.fork()
    if not child:
        signal.alarm(10)
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    taken = time.monotonic() - begin
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return taken

inside, finish, events = threading.Event(), threading.Event(), []

def stay(seconds):
    inside.set()
    assert finish.wait(seconds)
    events.append("done")
"""


def holds(code: str, *arguments: object) -> str:
    done = python(HELPERS + code, *arguments, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("way", ["session.run", "Session"])
def test_a_fork_waits_for_others_and_holds_new_ones_back(way: str) -> None:
    """Until no session is running or being created."""
    holds(f"""
session, other = Session(), Session()
enter = {way}
start(enter, lambda: stay(LONG))
inside.wait()

def come_late():
    inside.set()
    time.sleep(SHORT)
    late = start(enter, lambda: events.append("late"))
    # What begins inside of this goes on: the fork waits for both.
    other.run()
    Session()
    late.join(SHORT)
    assert events == [] and late.is_alive()
    finish.set()
    return late

late = []
inside.clear()
waiting = start(enter, lambda: late.append(come_late()))
inside.wait()

def work():
    assert events == ["done"]
    session.run()
    other.run()

assert SHORT < forked(work) < LONG / 2
waiting.join()
late[0].join()
assert events == ["done", "late"]
assert not runs._inside and not runs._forking
""")


def test_a_fork_does_not_wait_for_ever() -> None:
    """The child cannot use what was running, and the parent is warned once."""
    warnings = holds("""
runs._RUN_SECONDS = SHORT
session, other = Session(), Session()
stays = start(session.run, lambda: stay(LONG))
inside.wait()

def work():
    other.run()
    try:
        session.run()
    except RuntimeError as error:
        assert "was running" in str(error)
    else:
        raise AssertionError

for _ in range(2):
    assert SHORT < forked(work) < LONG
runs._RUN_SECONDS = LONG
finish.set()
stays.join()
assert forked(session.run) < LONG / 2
""")
    assert warnings.count("the process is forked while") == 1


@pytest.mark.parametrize("way", ["session.run(fork)", "Session().run(lambda: session.run(fork))", "later()"])
def test_who_is_inside_of_a_run_may_fork(way: str) -> None:
    """Nobody else can end it. In the child, the run goes on."""
    holds(f"""
session = Session()

def fork():
    assert forked(session.run) < LONG / 2
    events.append("forked")

def later():
    # What calls back is another thread.
    done = threading.Event()
    session.run_async(None, lambda callback: (callback(), done.set()), fork, None)
    assert done.wait(LONG)

{way}
assert events == ["forked"]
assert not runs._inside
""")


def test_run_async_lasts_until_it_has_called_back() -> None:
    holds("""
session = Session()

def call_back():
    session.run(lambda: events.append("ran"))
    time.sleep(SHORT)
    events.append("called back")

session.run_async(None, lambda callback: (time.sleep(SHORT), callback()), call_back, None)

def refused():
    assert events == ["ran", "called back"]
    try:
        session.run_async(None, lambda callback: callback(), call_back, None)
    except RuntimeError as error:
        assert "run_async" in str(error)
    else:
        raise AssertionError

assert SHORT < forked(refused) < LONG / 2
for wrong in ((None, lambda _: None), (None, lambda _: None, 1, 2, 3)):
    try:
        session.run_async(*wrong)
    except TypeError:
        pass
assert forked() < LONG / 2
assert not runs._inside
""")


def test_a_signal_handler_may_run_a_session_while_its_thread_waits_to_fork() -> None:
    holds("""
session = Session()
start(session.run, lambda: stay(LONG))
inside.wait()

def handle(*_):
    session.run(lambda: events.append("handled"))
    finish.set()

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, SHORT)
assert forked() < LONG / 2
assert events == ["handled", "done"]
""")


def test_a_run_that_is_interrupted_is_over() -> None:
    holds("""
session = Session()

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
caught = 0
for turn in range(2000):
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + turn % 40))
        for _ in range(30):
            session.run()
        time.sleep(1e-4)
    except KeyboardInterrupt:
        caught += 1
assert caught > 500, caught
assert not runs._inside
""")


POOL = """
from ort_qdq_plugin import create_session
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 3
session = create_session(sys.argv[1], options)
assert len(*runs._sessions.values()) >= 2
asleep, seen = runs.asleep, [True]
runs.asleep = lambda threads: seen.append(asleep(threads)) or seen[-1]
while all(seen):
    session.run(None, {"x": numpy.ones((16, 128), numpy.float32)})
    forked()
    assert seen[-1], seen
del session
assert not runs._sessions
"""


@pytest.mark.needs("/proc")
def test_a_fork_waits_until_the_threads_of_a_pool_sleep(tmp_path: Path) -> None:
    """They go on looking for work after a run, and hold a lock on their way to sleep."""
    holds(POOL, save(stack(2, 128, element="int4"), tmp_path, "file"))
