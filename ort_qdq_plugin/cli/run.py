"""``ort-qdq run``: any program with this package switched on, and at its end what that did."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
from pathlib import Path

from ort_qdq_plugin.cli.console import UsageError, complain
from ort_qdq_plugin.system.environment import NO_TELEMETRY, PREFIX, RUN_LOG_FILE, TUNABLES, with_huge_heap

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "run a program with this package switched on for it and its children, and say at the end what that did"
EXAMPLE = "ort-qdq run -- python program.py"

_SIGNAL = 128  # what shells add to the number of the signal that ended a program
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "--no-telemetry", action="store_true", help=f"have ONNX Runtime collect and send nothing in it ({NO_TELEMETRY}=1)"
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...", help="the program and its arguments")


def run(given: argparse.Namespace) -> int:
    """Run the program; its own exit code."""
    command = given.program[1:] if given.program[:1] == ["--"] else given.program
    if not command:
        raise UsageError(f"which program? Say it behind --: {EXAMPLE}")
    # Programs that it has started may live on, and have the file open: some systems do not remove it then.
    with tempfile.TemporaryDirectory(prefix="ort-qdq-run-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        log.touch()
        try:
            process = subprocess.Popen(command, env=_environment(str(log), given.no_telemetry))
        except OSError as error:
            raise UsageError(f"{command[0]}: {error.strerror}{_hint(command[0])}") from error
        # A terminal interrupts both; the program decides what comes of it.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        code = process.wait()
        lines = log.read_text("utf-8", "replace").splitlines()
    complain(*lines or ["ort-qdq run: no Python that has this package installed has created a session"])
    return code if code >= 0 else _SIGNAL - code


def _hint(program: str) -> str:
    """What may help where a program cannot be started."""
    if program.endswith(".py") and os.path.isfile(program):
        return f": to run it by Python, say python {program}"
    return "" if os.path.dirname(program) or os.path.exists(program) else ", in none of the folders of PATH"


def _environment(log: str, no_telemetry: bool) -> dict[str, str]:
    """That of the program."""
    environment = {**os.environ, PREFIX: "1", RUN_LOG_FILE: log}
    if no_telemetry:
        environment[NO_TELEMETRY] = "1"
    # Where it says "always" nothing is to be gained, and where it says "never" nothing can be.
    if _HUGE_PAGES.exists() and "[madvise]" in _HUGE_PAGES.read_text():
        environment[TUNABLES] = with_huge_heap(environment.get(TUNABLES, ""))
    return environment
