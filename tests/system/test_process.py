"""What this process may do, and what a fork of it waits for."""

from __future__ import annotations

import gc
import mmap
import os
from contextlib import suppress
from pathlib import Path

import pytest

from ort_qdq_plugin.system.process import (
    anonymous_bytes,
    available_processors,
    collecting_no_garbage,
    memory_is_limited,
    processor,
)
from tests.support import python

MB = 1 << 20


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    try:
        with suppress(KeyboardInterrupt), collecting_no_garbage():
            assert not gc.isenabled()
            with collecting_no_garbage():
                pass
            assert not gc.isenabled()
            raise KeyboardInterrupt
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


LIMITS = """
import resource, sys
from ort_qdq_plugin.system.process import memory_is_limited
limit = getattr(resource, sys.argv[1])
resource.setrlimit(limit, (1 << 40, resource.getrlimit(limit)[1]))
print(memory_is_limited())
"""


@pytest.mark.parametrize(("limit", "told"), [("RLIMIT_AS", True), ("RLIMIT_DATA", True), ("RLIMIT_FSIZE", False)])
def test_whether_memory_is_limited(limit: str, told: bool) -> None:
    if memory_is_limited():
        pytest.skip("it is limited here")
    done = python(LIMITS, limit)
    assert done.stdout == f"{told}\n", done.stderr


def test_anonymous_memory_is_that_which_no_file_backs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * MB))
    before = anonymous_bytes()
    with open(tmp_path / "file", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        assert sum(mapping[:: mmap.PAGESIZE]) == 0
        assert anonymous_bytes() - before < 16 * MB
    block = mmap.mmap(-1, 64 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1
    assert 48 * MB < anonymous_bytes() - before < 80 * MB
    block.close()


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert anonymous_bytes() == 0
    assert processor() == os.uname().machine


CPUINFO = """processor\t: 0
vendor_id\t: Somebody
cpu family\t: 6
model\t\t: 85
model name\t: Some Processor at 2 GHz
stepping\t: 7
cpu MHz\t\t: 1234.5
flags\t\t: avx2 avx512
bogomips\t: 5000

processor\t: 1
vendor_id\t: Another
flags\t\t: none
"""


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        ("Somebody", "Nobody", True),
        ("cpu family\t: 6", "cpu family\t: 7", True),
        ("model\t\t: 85", "model\t\t: 86", True),
        ("stepping\t: 7", "stepping\t: 8", True),
        ("avx512", "avx512 vnni", True),
        ("1234.5", "1000.0", False),
        ("5000", "5001", False),
        ("at 2 GHz", "at 3 GHz", False),
        ("Another", "A third", False),
    ],
)
def test_a_kind_of_processor(
    before: str, after: str, differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for text in (CPUINFO, CPUINFO.replace(before, after)):
        (tmp_path / "cpuinfo").write_text(text)
        real = open
        with monkeypatch.context() as patched:
            patched.setattr("builtins.open", lambda _, **options: real(tmp_path / "cpuinfo", **options))  # noqa: B023
            said.append(processor())
    assert (said[0] != said[1]) == differs
    assert os.uname().machine in said[0]


def test_processors_that_this_process_may_use() -> None:
    code = "import os, ort_qdq_plugin.system.process as p; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    done = python(f"{code}; print(p.available_processors())")
    assert done.stdout == "1\n", done.stderr
    assert available_processors() == len(os.sched_getaffinity(0))


FORKS = """
import os, threading, time
from ort_qdq_plugin.system.process import fork_lock

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
from ort_qdq_plugin.system.process import fork_lock
with fork_lock:
    child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os._exit(0)
"""


def test_who_holds_a_fork_up_may_fork() -> None:
    done = python(OWN)
    assert done.returncode == 0, done.stderr
