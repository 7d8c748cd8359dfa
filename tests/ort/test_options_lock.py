"""Options that threads share: many read, one changes, and a fork finds nothing half changed."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress

import onnxruntime as ort
import pytest

from ort_qdq_plugin.ort.options_lock import changing, reading
from tests.support import python

LONG = 30.0
SHORT = 0.1


Block = Callable[[ort.SessionOptions], AbstractContextManager[object]]


def enters(block: Block, options: ort.SessionOptions) -> bool:
    """Whether another thread can be in the block within a short time; it is waited for afterwards by nobody."""
    entered = threading.Event()

    def work() -> None:
        with block(options):
            entered.set()

    threading.Thread(target=work, daemon=True).start()
    return entered.wait(SHORT)


@pytest.mark.parametrize("held", [reading, changing])
@pytest.mark.parametrize("asked", [reading, changing])
def test_only_many_readers_are_not_alone(held: Block, asked: Block) -> None:
    options = ort.SessionOptions()
    with held(options):
        assert enters(asked, options) == (held is asked is reading)
    assert enters(changing, options)


def test_nobody_changes_what_one_of_two_still_reads() -> None:
    options = ort.SessionOptions()
    with reading(options):
        with reading(options):
            assert enters(reading, options)
        assert not enters(changing, options)
    assert enters(changing, options)


def test_others_are_not_waited_for() -> None:
    options = ort.SessionOptions()
    with changing(ort.SessionOptions()), reading(None):
        assert enters(reading, options)
        assert enters(changing, options)


@pytest.mark.parametrize("block", [reading, changing])
def test_an_error_ends_it(block: Block) -> None:
    options = ort.SessionOptions()
    with suppress(KeyboardInterrupt), block(options):
        raise KeyboardInterrupt
    assert enters(changing, options)


def test_changes_are_undone_before_others_come() -> None:
    options = ort.SessionOptions()
    seen: list[bool] = []
    changed = threading.Event()

    def work(number: int) -> None:
        if number % 3:
            with reading(options):
                seen.append(changed.is_set())
                time.sleep(0.001)
        else:
            with changing(options) as changes:
                assert not changed.is_set()
                changed.set()
                changes.callback(changed.clear)
                time.sleep(0.001)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(120)))
    assert seen == [False] * 80
    assert not changed.is_set()


def test_changes_are_undone_in_reverse_order() -> None:
    undone: list[int] = []
    with suppress(KeyboardInterrupt), changing(ort.SessionOptions()) as changes:
        changes.callback(undone.append, 1)
        changes.callback(undone.append, 2)
        raise KeyboardInterrupt
    assert undone == [2, 1]


def test_options_are_not_kept() -> None:
    options = ort.SessionOptions()
    with reading(options):
        gone = weakref.ref(options)
    with changing(options):
        pass
    del options
    gc.collect()
    assert gone() is None


FORKS = """
import os, threading
import onnxruntime as ort
from ort_qdq_plugin.ort.options_lock import changing, reading

options = ort.SessionOptions()
options.add_session_config_entry("key", "before")
inside, finish = threading.Event(), threading.Event()

def work():
    with BLOCK(options) as changes:
        if changes is not None:
            changes.callback(options.add_session_config_entry, "key", "before")
            options.add_session_config_entry("key", "meanwhile")
        inside.set()
        finish.wait()

thread = threading.Thread(target=work)
thread.start()
inside.wait()
child = os.fork()
if not child:
    with changing(options):
        os._exit(0 if options.get_session_config_entry("key") == "before" else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert options.get_session_config_entry("key") == ("meanwhile" if BLOCK is changing else "before")
finish.set()
thread.join()
assert options.get_session_config_entry("key") == "before"
"""


OWN = """
import os
import onnxruntime as ort
from ort_qdq_plugin.ort.options_lock import changing

options = ort.SessionOptions()
undone = []
with changing(options) as changes:
    changes.callback(undone.append, 1)
    child = os.fork()
    assert not undone
assert undone == [1]
if not child:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.parametrize(
    "code",
    [*(FORKS.replace("BLOCK", block) for block in ("changing", "reading")), OWN],
    ids=["others change", "others read", "the forking thread changes"],
)
def test_a_child_neither_waits_for_threads_that_it_lacks_nor_undoes_what_is_not_over(code: str) -> None:
    done = python(code, timeout=LONG)
    assert done.returncode == 0, done.stderr
