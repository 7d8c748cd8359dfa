"""Ctrl-C, `kill -9`, a fork or the end of the interpreter while a model is loaded: nothing is left behind."""

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import pytest

import ort_qdq_plugin
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, FOLDER_KEY, PARALLEL_KEY, config_entry
from ort_qdq_plugin.packing import pack
from tests.interrupting import Left, at_place, interrupted, settled
from tests.support import ROOT, added_provider, linear, made_report, python, quiet, result, save, stack
from tests.withstands.loads import KINDS, LOADS

# Where what is open, running or changed comes from: not the rooms that decide, and hold nothing.
PACKAGE = os.path.dirname(ort_qdq_plugin.__file__)
DECIDES = tuple(f"{PACKAGE}/{room}/" for room in ("fusion", "model"))
OWNS = (*(module.__file__ for module in (contextlib, shutil, subprocess, tempfile, weakref)), f"{PACKAGE}/model/sources.py")


def within(path: str) -> bool:
    return path in OWNS or (path.startswith(PACKAGE) and not path.startswith(DECIDES))


class Route(NamedTuple):
    """A way of loading a model, and what its session computes."""

    folder: Path
    options: ort.SessionOptions
    ours: Options
    is_new: bool  # whether the cache is empty before each load

    def load(self) -> ort.InferenceSession:
        return create_session(str(self.folder / "model.onnx"), self.options, options=self.ours)

    def settle(self) -> None:
        """Let what runs in the background end, and what is new be new again."""
        wait_until_on_disk()
        gc.collect()
        if self.is_new:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def entries(self) -> list[str | None]:
        """What the caller's options say that a load by path changes for a while."""
        return [config_entry(self.options, key) for key in (ACCURACY_KEY, FOLDER_KEY, PARALLEL_KEY)]


@pytest.fixture(params=["memory", "file", "by path", "new entry", "entry", "shared entry"])
def route(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Route:
    # Little is packed by several threads, too.
    monkeypatch.setattr(pack, "_BYTES_PER_THREAD", 1)
    kind = request.param
    save(stack(2, 128, element="int4"), tmp_path, "external")
    cached = {"cache_dir": tmp_path / "cache", "share_weights": kind == "shared entry"} if "entry" in kind else {}
    buffer: Any = "memory" if kind == "memory" else "file"
    ours = Options(accuracy_level=1, threads=2, buffer=buffer, spill_dir=tmp_path / "spill", **cached)
    (tmp_path / "spill").mkdir()
    return Route(tmp_path, added_provider() if kind == "by path" else quiet(), ours, kind == "new entry")


# Every so many lines of a load.
MOST = pytest.param(9, marks=pytest.mark.long)


@pytest.mark.parametrize("stride", [127, MOST])
def test_an_interrupt_at_any_place_leaves_nothing(route: Route, stride: int) -> None:
    wanted = result(route.load())
    route.settle()
    before, entries, number = Left.at_rest(route.folder), route.entries(), 1
    while interrupted(number, route.load, within):
        route.settle()
        assert settled(route.folder, before) == before, number
        assert route.entries() == entries, number
        session = route.load()
        assert made_report(session).route != "stock", number
        np.testing.assert_array_equal(result(session), wanted)
        del session
        route.settle()
        number += stride
    assert number > 200


@pytest.mark.parametrize("stride", [pytest.param(127, marks=pytest.mark.slow), MOST])
def test_a_fork_at_any_place_changes_nothing(route: Route, stride: int) -> None:
    def fork() -> None:
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    sessions = [route.load()]
    wanted = result(sessions.pop())
    route.settle()
    fork()  # NumPy's libraries end threads of their own before the first one
    before, number = Left.at_rest(route.folder), 1
    while at_place(number, lambda: sessions.append(route.load()), within, fork):
        assert made_report(sessions[0]).route != "stock", number
        np.testing.assert_array_equal(result(sessions.pop()), wanted)
        route.settle()
        assert settled(route.folder, before) == before, number
        number += stride
    assert number > 200


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_on_a_thread_that_packs_leaves_nothing(
    tmp_path: Path, spill: Path, make: Callable[[], ort.SessionOptions], threads: int
) -> None:
    stored = save(stack(3, 128), tmp_path, "external")

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    before, running = Left.at_rest(spill), threading.active_count()
    options = Options(progress=interrupt, buffer="file", spill_dir=spill, threads=threads)
    with pytest.raises(KeyboardInterrupt) as caught:
        create_session(stored, make(), options=options)
    del caught
    assert settled(spill, before) == before
    assert threading.active_count() == running


ENDS = """
def late(how):
    if how == "without threads":
        import _posixsubprocess, _thread, subprocess
        def refuse(*_):
            raise RuntimeError("can't create it at interpreter shutdown")
        _thread.start_new_thread = threading._start_new_thread = refuse
        _posixsubprocess.fork_exec = subprocess._fork_exec = refuse
    for _ in range(2):
        print(run(load()).shape, flush=True)

def late_thread():
    threading.main_thread().join()
    late("")

# Python 3.12 and later have neither threads nor processes for functions that run at exit.
for how in ("", "without threads"):
    atexit.register(late, how)
threading.Thread(target=late_thread).start()
"""


@KINDS
def test_models_load_while_the_interpreter_ends(tmp_path: Path, kind: str) -> None:
    save(stack(2, 128, element="int4"), tmp_path, "external")
    done = python(LOADS + ENDS, tmp_path, kind)
    assert (done.returncode, done.stdout) == (0, "(3, 128)\n" * 6), done.stderr


KILLED = """
import sys, time
from pathlib import Path
import onnxruntime
from ort_qdq_plugin import Options, create_session
model, spill, route = sys.argv[1:]
options = onnxruntime.SessionOptions()
if route == "by path":
    options.add_provider("CPUExecutionProvider", {})
def wait(done, total):
    if done < total:
        return
    print("packing", flush=True)
    time.sleep(60)
create_session(model, options, options=Options(buffer="file", spill_dir=spill, progress=wait, threads=1))
"""


@pytest.mark.parametrize("route", ["borrowed", "by path"])
def test_nothing_survives_a_kill_while_packing(tmp_path: Path, spill: Path, route: str) -> None:
    """By path the file has a name until the session is made: whatever stays of it, the next load sweeps up."""
    model = save(linear(Weight(k=512, n=512)), tmp_path, "external")
    command = [sys.executable, "-c", KILLED, str(model), str(spill), route]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"packing\n"
        assert route == "by path" or not list(spill.iterdir())
        process.send_signal(signal.SIGKILL)
    if route == "by path":
        session = create_session(model, added_provider(), options=Options(spill_dir=spill))
        assert made_report(session).route == "by path"
