"""Work on threads of its own: what becomes of it, also when its caller is interrupted."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from ort_qdq_plugin.system.threads import Work
from tests.interrupting import interrupted
from tests.support import python


def test_it_is_done_on_another_thread() -> None:
    work = Work(threading.get_ident)
    work.start()
    work.wait()
    assert work.ended
    assert work.take_error() is None
    assert work.result != threading.get_ident()


def test_what_it_raises_is_taken_once() -> None:
    error = ValueError("why")

    def fail() -> None:
        raise error

    work = Work(fail)
    work.run()
    work.wait()
    assert work.take_error() is error
    assert work.take_error() is None


def test_it_is_begun_once_or_never() -> None:
    done: list[int] = []
    work = Work(lambda: done.append(1))
    work.run()
    work.run()
    assert not work.take_back()
    other = Work(lambda: done.append(2))
    assert other.take_back()
    other.run()
    assert done == [1]
    assert not other.ended


def test_what_it_needs_is_not_kept() -> None:
    class Needed:
        def use(self) -> None:
            pass

    needed = Needed()
    gone, work = weakref.ref(needed), Work(needed.use)
    del needed
    work.run()
    assert gone() is None


def test_a_handler_does_not_end_the_waiting() -> None:
    slow = Work(lambda: time.sleep(0.2))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    slow.start()
    slow.wait()
    assert slow.ended
    assert isinstance(slow.take_error(), KeyboardInterrupt)


def test_an_interrupt_at_any_place_loses_nothing() -> None:
    """What is begun is done; what is not begun can be taken back."""

    def start_and_wait(done: list[int], works: list[Work[None]]) -> Callable[[], None]:
        def call() -> None:
            works.append(Work(lambda: done.append(1)))
            works[0].start()
            works[0].wait()

        return call

    number = 1
    while True:
        done: list[int] = []
        works: list[Work[None]] = []
        was = interrupted(number, start_and_wait(done, works), lambda path: path.endswith("threads.py"))
        for work in works:
            if not work.take_back():
                work.wait()
                assert done == [1], number
        if not was:
            break
        number += 1
    assert number > 5


FORKS = """
import os, signal, time
from ort_qdq_plugin.system.threads import Work
def fork(*_):
    global child
    child = os.fork()
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.1)
work = Work(lambda: time.sleep(0.3))
work.start()
work.wait()
error = work.take_error()
if not child:
    os._exit(0 if isinstance(error, RuntimeError) and "forked" in str(error) else 1)
assert error is None
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_wait_for_its_parents_thread() -> None:
    done = python(FORKS)
    assert done.returncode == 0, done.stderr
