"""What a process must do, what becomes of it and what it leaves behind, judged by what stock ONNX Runtime makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ort_qdq_plugin.options import Buffer

__all__ = ["FILLER", "LOADED", "MB", "Job", "LoadProcess", "Outcome", "Verdict", "judge", "listing", "settled_listing"]

MB = 1 << 20
_TIMEOUT = 40.0  # seconds; a load takes less than two
FILLER = "filler"
"""Name of the file that fills a disk."""
LOADED = "loaded"
"""What a process prints when it has a session."""


@dataclass(frozen=True)
class Job:
    """What a process must do: break something, then load. It is written to its command line as JSON."""

    model: str
    loader: str = "ours"  # "ours", "by path" or "stock"
    spill_dir: str | None = None
    temporary: str = ""  # TMPDIR, if it is a special one
    threads: int = 2
    buffer: Buffer = "file"
    breaks: str = ""  # a name in `breaks.BREAKS`
    value: int = 0
    paths: Sequence[str] = ()  # what the break works on
    wait: bool = False  # for a line on standard input, once everything is imported
    again: bool = False  # load once more, after an interrupt or beside the first session
    uid: int = 0  # run as this user from then on


@dataclass(frozen=True)
class Outcome:
    """What became of a load. `result` is a digest of the output; `error` the exception's class."""

    result: str = ""
    error: str = ""
    route: str = ""
    warnings: Sequence[str] = ()
    again: str = ""
    left: Sequence[str] = ()
    died: str = ""
    messages: str = ""
    stage: str = ""
    seconds: float = 0.0
    missed: bool = False  # the moment at which something was to break never came

    @property
    def short(self) -> str:
        """A few words for the table."""
        if self.died:
            return self.died
        ending = f", then {self.again}" if self.again else ""
        return (f"session ({self.route})" if self.result else self.error) + ending


# Has no counterpart: ONNX Runtime maps what it cannot read.
_UNREADABLE = "SourceUnreadableError"


@dataclass(frozen=True)
class Verdict:
    """One load, judged: what is wrong with it, or nothing, a few words on it, and how many files it left behind."""

    what: str
    problem: str = ""
    left: int = 0

    @staticmethod
    def of(what: str, problem: str, left: Collection[str]) -> Verdict:
        """A verdict, for which files that were left are a problem."""
        return Verdict(what, problem or (f"left behind: {sorted(left)}" if left else ""), len(left))


def judge(ours: Outcome, stock: Outcome, results: set[str], left: set[str], alike: frozenset[str] = frozenset()) -> Verdict:
    """Judge a load by what stock ONNX Runtime made of the same fault, and by the results that are right.

    Errors that are `alike` are as good as each other.
    """
    problem, what = "", ours.short
    if ours.result and ours.result not in results:
        problem = "wrong result"
    elif ours.died and ours.died != stock.died:
        problem = f"{ours.died} {ours.messages[-300:]}; stock: {stock.short}"
    elif ours.died:
        what = f"{ours.died}, as stock is"
    elif ours.error == _UNREADABLE and stock.died:
        what = f"{ours.error}; stock: {stock.died}"
    elif ours.error and ours.error != stock.error and not {ours.error, stock.error} <= alike:
        problem = f"{ours.error}: {ours.messages}; stock: {stock.short}"
    elif ours.error:
        what = f"stock's own {stock.error}"
    elif len(ours.warnings) > 1:
        problem = f"{len(ours.warnings)} warnings: {ours.warnings}"
    elif "Traceback" in ours.messages:
        problem = f"a traceback: {ours.messages[-300:]}"
    if ours.missed:
        problem = problem or "the moment never came"
    if ours.result and ours.warnings:
        what += " and a warning"
    return Verdict.of(what, problem, left | {*ours.left})


class LoadProcess:
    """A process that does a job, with temporary files and home where they are told to be."""

    def __init__(self, job: Job, temporary: str, home: str) -> None:
        command = [sys.executable, "-m", "conformance.faults", "--child", json.dumps(asdict(job))]
        # ONNX Runtime keeps a data base of its own in the home directory.
        places = {"TMPDIR": temporary, "HOME": home, "PYTHONPATH": str(Path(__file__).parents[2])}
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._process: Any = subprocess.Popen(command, text=True, env={**os.environ, **places}, **pipes)
        self.send_signal = self._process.send_signal

    def begin(self) -> bool:
        """Let a process that waits begin with its load; False if it did not come so far."""
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
