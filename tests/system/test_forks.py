"""Forks: what they wait for, and what happens in the child."""

import hashlib
import threading
import time

import pytest

from ort_qdq_plugin.system.forks import asleep, native_threads
from tests.support import python, quiet, stock, unquantized

FORKS = """
import os, threading, time
from ort_qdq_plugin.system.forks import fork_lock

held, done = threading.Event(), threading.Event()

def work():
    with fork_lock:
        held.set()
        time.sleep(0.3)
        done.set()

thread = threading.Thread(target=work)
thread.start()
held.wait()
child = os.fork()
assert done.is_set()
# Both processes have given it back.
other = threading.Thread(target=work, daemon=True)
other.start()
other.join(10)
if not child:
    os._exit(other.is_alive())
assert not other.is_alive()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
"""


def test_a_fork_waits_for_what_must_not_be_interrupted() -> None:
    done = python(FORKS)
    assert done.returncode == 0, done.stderr


OWN = """
import os
from ort_qdq_plugin.system.forks import fork_lock
with fork_lock:
    child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os._exit(0)
"""


def test_who_holds_a_fork_up_may_fork() -> None:
    done = python(OWN)
    assert done.returncode == 0, done.stderr


AROUND = """
import os
from ort_qdq_plugin.system.forks import around_forks, fork_lock
events = []

def note(event):
    events.append((event, fork_lock._is_owned()))

around_forks(lambda: note("before"), lambda: note("after"))
child = os.fork()
if not child:
    os._exit(events != [("before", False)])
assert events == [("before", False), ("after", False)], events
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_what_is_called_around_a_fork_may_wait_for_the_lock() -> None:
    done = python(AROUND)
    assert done.returncode == 0, done.stderr


REGISTERED_MEANWHILE = """
import os
from ort_qdq_plugin.system.forks import around_forks
events = []

def register():
    if not events:
        around_forks(lambda: events.append("before"), lambda: events.append("after"))
        events.append("registered")

os.register_at_fork(before=register)
for expected in (["registered"], ["registered", "before", "after"]):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    assert events == expected, events
"""


def test_what_is_registered_while_a_fork_begins_is_called_around_the_next_one() -> None:
    """As by a module that another thread imports, for which the fork waits."""
    done = python(REGISTERED_MEANWHILE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("sizes")
def test_which_threads_sleep() -> None:
    stop, numbers = threading.Event(), []

    def wait() -> None:
        numbers.append(threading.get_native_id())
        stop.wait()

    def work() -> None:
        numbers.append(threading.get_native_id())
        while not stop.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)

    def soon(threads: list[int], wanted: bool) -> bool:
        end = time.monotonic() + 10
        while asleep(threads) != wanted and time.monotonic() < end:
            time.sleep(0.001)
        return asleep(threads) == wanted

    threads = [threading.Thread(target=target) for target in (wait, work)]
    for number, thread in enumerate(threads):
        thread.start()
        while len(numbers) == number:
            time.sleep(0.001)
    try:
        assert soon(numbers[:1], True)
        assert soon(numbers, False)
        assert not native_threads() & {threading.get_native_id(), *numbers}
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert soon(numbers, True), "they have ended"


@pytest.mark.needs("sizes")
def test_threads_that_python_has_not_started() -> None:
    before = native_threads()
    options = quiet()
    options.intra_op_num_threads = 4
    session = stock(unquantized().SerializeToString(), options)
    assert len(native_threads() - before) == 3
    del session
