"""Starting such processes, hearing what became of them, and seeing what they leave behind."""

from __future__ import annotations

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

__all__ = ["FILLER", "TIMEOUT", "listing", "outcome_from", "outcome_of_process", "settled_listing", "start_process"]

TIMEOUT = 40.0
"""Seconds; a load takes less than two."""
FILLER = "filler"
"""Name of the file that fills a disk."""


def start_process(job: Job, temporary: Path, home: Path) -> subprocess.Popen[str]:
    """Start a process that does the job, with temporary files and home where they are told to be."""
    return subprocess.Popen(
        [sys.executable, "-m", "conformance.faults", "--child", json.dumps(asdict(job))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # ONNX Runtime keeps a data base of its own in the home directory.
        env={**os.environ, "TMPDIR": str(temporary), "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def outcome_from(process: subprocess.Popen[str], out: str, messages: str) -> Outcome:
    """What a process that has ended made of its job, from what it printed."""
    if process.returncode < 0:
        return Outcome(died=f"killed by {signal.Signals(-process.returncode).name}", messages=messages)
    if process.returncode:
        tail = messages.strip().splitlines()[-1:] or [""]
        return Outcome(died=f"exit code {process.returncode}: {tail[0][:200]}", messages=messages)
    said = json.loads(out.strip().splitlines()[-1])
    for key in ("warnings", "left"):
        said[key] = tuple(said[key])
    outcome = Outcome(**said)
    return replace(outcome, messages=messages or outcome.messages) if "Traceback" in messages else outcome


def outcome_of_process(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a process, and see what became of its job."""
    try:
        out, messages = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(died="hangs")
    return outcome_from(process, out, messages)


def listing(folders: Sequence[Path]) -> set[str]:
    """Everything in these folders."""
    return {
        os.path.join(where, name)
        for folder in folders
        for where, below, files in os.walk(folder)
        for name in (*below, *files)
        if name not in ("lost+found", FILLER)
    }


def settled_listing(watched: Sequence[Path], before: set[str], seconds: float = 2.0) -> set[str]:
    """What is there that was not, once whoever cleans up had the time for it."""
    end = time.monotonic() + seconds
    while (left := listing(watched) - before) and time.monotonic() < end:
        time.sleep(0.01)
    return left
