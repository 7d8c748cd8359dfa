"""Options that threads share: many read, one changes, and neither an interrupt nor a fork leaves them locked or changed."""

import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import onnxruntime as ort
import pytest

from ort_qdq_plugin.ort import options_lock
from ort_qdq_plugin.ort.options_lock import reading, with_entries
from ort_qdq_plugin.system import threads
from tests.interrupting import interrupted
from tests.support import python

LONG = 30.0
SHORT = 0.1
MODULES = (options_lock.__file__, threads.__file__)
KEY = "session.model_external_initializers_file_folder_path"
ort.set_default_logger_severity(3)  # overwriting an entry is a warning


def entry(options: ort.SessionOptions) -> str:
    with suppress(RuntimeError):
        return str(options.get_session_config_entry(KEY))
    return ""


def read(options: ort.SessionOptions) -> str:
    with reading(options):
        return entry(options)


def change(options: ort.SessionOptions) -> str:
    return with_entries(options, {KEY: "meanwhile"}, lambda: entry(options))


def ends(work: Callable[[ort.SessionOptions], str], options: ort.SessionOptions, seconds: float = SHORT) -> bool:
    """Whether another thread is done with it within this time; nobody waits for it afterwards."""
    thread = threading.Thread(target=work, args=(options,), daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_entries_are_there_for_a_while() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry(KEY, "before")
    assert (change(options), read(options)) == ("meanwhile", "before")


def test_an_entry_that_stays_the_same_is_not_set() -> None:
    """ONNX Runtime would warn that it is overwritten."""

    class Recorded(ort.SessionOptions):  # type: ignore[misc]  # onnxruntime is untyped
        def add_session_config_entry(self, key: str, value: str) -> None:
            was_set.append((key, value))
            super().add_session_config_entry(key, value)

    options, was_set = Recorded(), list[tuple[str, str]]()
    options.add_session_config_entry(KEY, "meanwhile")
    was_set.clear()
    assert (change(options), read(options), was_set) == ("meanwhile", "meanwhile", [])
    with_entries(options, {KEY: "meanwhile", "other": "value"}, lambda: None)
    assert was_set == [("other", "value"), ("other", "")]


def test_many_read_and_nobody_changes_meanwhile() -> None:
    options = ort.SessionOptions()
    with reading(options):
        with reading(options):
            assert ends(read, options)
        assert not ends(change, options)
    assert ends(change, options)


def test_who_changes_is_alone() -> None:
    options, others = ort.SessionOptions(), ort.SessionOptions()

    def action() -> list[bool]:
        return [ends(read, options), ends(change, options), ends(read, others), ends(change, others)]

    assert with_entries(options, {}, action) == [False, False, True, True]
    assert ends(change, options)
    with reading(None):
        pass


def test_changes_are_never_seen() -> None:
    options = ort.SessionOptions()
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(lambda number: (read if number % 3 else change)(options), range(120)))
    assert seen == ["" if number % 3 else "meanwhile" for number in range(120)]


@pytest.mark.parametrize("error", [ValueError("why"), KeyboardInterrupt()])
def test_an_error_of_the_action_is_raised_when_all_is_undone(error: BaseException) -> None:
    options = ort.SessionOptions()

    def action() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        with_entries(options, {KEY: "meanwhile"}, action)
    assert caught.value is error
    assert read(options) == ""


def test_without_a_thread_it_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    options = ort.SessionOptions()
    monkeypatch.setattr("_thread.start_new_thread", refuse)
    assert change(options) == "meanwhile"
    # A handler that loads meanwhile must not wait for itself.
    assert with_entries(options, {}, lambda: read(options)) == ""
    assert read(options) == ""


def in_handler(action: Callable[[], object]) -> list[object]:
    """What a signal handler gets that does something while this thread is inside of something."""
    seen: list[object] = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(action()))
    signal.setitimer(signal.ITIMER_REAL, SHORT)
    return seen


def test_a_handler_does_not_wait_for_the_load_that_it_interrupts() -> None:
    options = ort.SessionOptions()
    seen = in_handler(lambda: (read(options), change(options)))
    with reading(options):
        time.sleep(3 * SHORT)
    assert seen == [("", "meanwhile")]
    seen = in_handler(lambda: (read(options), change(options)))

    def wait() -> str:
        time.sleep(3 * SHORT)
        return entry(options)

    assert with_entries(options, {KEY: "outer"}, wait) == "outer"
    assert seen == [("", "meanwhile")]


@pytest.mark.parametrize("work", [read, change])
def test_an_interrupt_at_any_place_leaves_nothing(work: Callable[[ort.SessionOptions], str]) -> None:
    number = 1
    while True:
        options = ort.SessionOptions()
        was = interrupted(number, lambda: work(options), MODULES.__contains__)  # noqa: B023  # called at once
        assert ends(change, options, LONG), number
        assert read(options) == "", number
        if not was:
            break
        number += 1
    assert number > 15


def test_an_interrupt_keeps_nothing_of_the_load() -> None:
    """Not until the next load with the same options, either."""

    class Loaded:
        pass

    def load(options: ort.SessionOptions, loaded: Loaded) -> None:
        with reading(options):
            pass

    options, number = ort.SessionOptions(), 1
    while True:
        loaded = Loaded()
        gone = weakref.ref(loaded)
        was = interrupted(number, partial(load, options, loaded), MODULES.__contains__)
        del loaded
        assert gone() is None, number
        if not was:
            break
        number += 1
    assert number > 15


def test_options_are_not_kept() -> None:
    options = ort.SessionOptions()
    read(options)
    change(options)
    gone = weakref.ref(options)
    del options
    gc.collect()
    assert gone() is None


FORKS = """
import os, threading
import onnxruntime as ort
from ort_qdq_plugin.ort.options_lock import reading, with_entries

options = ort.SessionOptions()
options.add_session_config_entry("key", "before")
inside, finish = threading.Event(), threading.Event()

def wait():
    inside.set()
    finish.wait()

def work():
    if CHANGES:
        with_entries(options, {"key": "meanwhile"}, wait)
    else:
        with reading(options):
            wait()

thread = threading.Thread(target=work)
thread.start()
inside.wait()
child = os.fork()
if not child:
    seen = with_entries(options, {}, lambda: options.get_session_config_entry("key"))
    os._exit(0 if seen == "before" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert options.get_session_config_entry("key") == ("meanwhile" if CHANGES else "before")
finish.set()
thread.join()
assert options.get_session_config_entry("key") == "before"
"""


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.needs("fork")
def test_a_child_does_not_wait_for_threads_that_it_lacks(changes: bool) -> None:
    done = python(FORKS.replace("CHANGES", str(changes)), timeout=LONG)
    assert done.returncode == 0, done.stderr
