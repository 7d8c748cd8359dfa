"""Ctrl-C and `kill -9` while a model is loaded: nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session
from tests import support
from tests.support import ROOT, added_provider, linear, made_report, mapped, quiet, save, stack


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path: Path, spill: Path, make: Any, threads: int) -> None:
    stored = save(stack(3, 128), tmp_path, "external")

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    before, running = support.settled_descriptors(), threading.active_count()
    options = Options(progress=interrupt, buffer="file", spill_dir=spill, threads=threads)
    with pytest.raises(KeyboardInterrupt) as caught:
        create_session(stored, make(), options=options)
    del caught
    assert not list(spill.iterdir())
    assert not mapped(spill)
    assert threading.active_count() == running
    assert support.descriptors() == before


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
