"""Starting such processes, hearing what became of them, and seeing what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from conformance.faults.job import Job, Outcome

__all__ = ["FILLER", "LoadProcess", "listing", "settled_listing"]

_TIMEOUT = 40.0  # seconds; a load takes less than two
FILLER = "filler"
"""Name of the file that fills a disk."""


class LoadProcess:
    """A process that does a job, with temporary files and home where they are told to be."""

    def __init__(self, job: Job, temporary: str, home: str) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conformance.faults", "--child", json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # ONNX Runtime keeps a data base of its own in the home directory.
            env={**os.environ, "TMPDIR": temporary, "HOME": home, "PYTHONPATH": root},
        )
        self.send_signal = self._process.send_signal

    def begin(self) -> bool:
        """Let a process that waits begin with its load; False if it did not come so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            return False
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return True

    def outcome(self) -> Outcome:
        """Wait for its end, and see what became of the job, and in which stage."""
        try:
            out, messages = self._process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return Outcome(died="hangs")
        lines = out.strip().splitlines()
        stages = [line for line in lines if not line.startswith("{")]
        outcome = Outcome(messages=messages, stage=stages[-1] if stages else "open")
        code = self._process.returncode
        if code < 0:
            return replace(outcome, died=f"killed by {signal.Signals(-code).name}")
        if code:
            tail = messages.strip().splitlines()[-1:] or [""]
            return replace(outcome, died=f"exit code {code}: {tail[0][:200]}")
        said = json.loads(lines[-1])
        return Outcome(**{**said, "stage": outcome.stage, **({"messages": messages} if "Traceback" in messages else {})})


def listing(folders: Sequence[str | Path]) -> set[str]:
    """Everything in these folders."""
    return {
        os.path.join(where, name)
        for folder in folders
        for where, below, files in os.walk(folder)
        for name in (*below, *files)
        if name not in ("lost+found", FILLER)
    }


def settled_listing(watched: Sequence[str | Path], before: set[str], seconds: float = 2.0) -> set[str]:
    """What is there that was not, once whoever cleans up had the time for it."""
    end = time.monotonic() + seconds
    while (left := listing(watched) - before) and time.monotonic() < end:
        time.sleep(0.01)
    return left
