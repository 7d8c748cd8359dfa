"""Unmodified programs from the Python package index, started without and with ORT_QDQ_PLUGIN=1.

    python -m conformance.programs [--only GLOB] [--markdown FILE] [--environments FOLDER] [--runs 5]

Each program brings its models along. It is installed into an environment of its own, with this checkout beside it (0.2 to
1 GB, one at a time unless a folder is given), and gets input that is made here. It can reach no network when it runs. Fresh
processes run without and with the variable, in turns. A row passes if

- what comes out is the same to the last digit;
- standard error has no line that is not there without the variable, also under `-X dev` with each warning that a module of
  this package causes made an error; and
- from its start to its end it takes at most 5 % longer, or 25 ms, which is what a first load may cost
  (`benchmarks.first_load`). Medians are compared, those of seconds and those of CPU seconds, which other work on the machine
  changes less. A row fails if both are above.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from conformance.checks import parser, run
from conformance.programs.catalogue import PROGRAMS

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = Path(__file__).with_name("child.py")
_COLUMNS = ("program", "sessions", "same", "start", "ratio", "CPU", "ratio", "peak", "verdict")
_ONNX_RUNTIME = "onnxruntime==1.32.0"
_SECONDS = 600  # for one command: downloads are slow at times
_SLOWER, _FIRST_LOAD_SECONDS = 1.05, 0.025
_NOWHERE = "http://127.0.0.1:9"  # no proxy listens there
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HTTP_PROXY": _NOWHERE, "HTTPS_PROXY": _NOWHERE, "ORT_DISABLE_TELEMETRY": "1"}
_ON = {"ORT_QDQ_PLUGIN": "1"}
_SESSION = re.compile(r"^ort-qdq-plugin\[\d+\]: (?P<model>.*?): (?P<route>\w[\w ]*): (?P<rest>.*)$")


class _Started(NamedTuple):
    """What a process did."""

    seconds: float
    cpu: float
    peak: int
    result: Any
    said: set[str]  # the lines on standard error, without numbers


class _Environments:
    """Environments with a program and this checkout each.

    Args:
        folder: Where they are made.
        keep: Whether one stays when another is made.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self._folder, self._keep = folder, keep
        self._wheel = folder / "wheel"
        shutil.rmtree(self._wheel, ignore_errors=True)
        self._pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", self._wheel, _ROOT)

    def python(self, requirements: Sequence[str]) -> Path:
        """The interpreter of the environment that has them, made if there is none yet."""
        place = self._folder / re.sub(r"\W+", "-", requirements[0])
        python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
        (wheel,) = self._wheel.glob("*.whl")
        if (place / "complete").exists():
            self._pip(python, "install", "--no-deps", "--force-reinstall", wheel)
            return python
        if not self._keep:
            for other in self._folder.glob("*/complete"):
                shutil.rmtree(other.parent)
        venv.create(place, with_pip=True, clear=True)
        self._pip(python, "install", *requirements, _ONNX_RUNTIME, wheel)
        (place / "complete").touch()
        return python

    @staticmethod
    def _pip(python: Path, *arguments: str | Path) -> None:
        command = (python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)
        done = subprocess.run(command, check=False, env=_environment(), capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode:
            raise RuntimeError(f"pip {arguments[0]}: {done.stderr.strip()[-400:]}")


def _environment(**more: str) -> dict[str, str]:
    """Variables of this process but those of Python and of this package, and more."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "ORT_QDQ_PLUGIN"))} | more


def _started(python: Path, code: str, folder: Path, variables: Mapping[str, str], *options: str) -> _Started:
    """Run the code in a fresh process.

    Raises:
        RuntimeError: It fails.
    """
    out = folder / "out.json"
    command: list[str | Path] = [python, *options, _CHILD, out]
    variables = _environment(**_OFFLINE, **variables)
    start = time.perf_counter()
    done = subprocess.run(
        command, input=code, cwd=folder, env=variables, check=False, capture_output=True, encoding="utf-8",
        errors="replace", timeout=_SECONDS,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    figures = json.loads(out.read_text("utf-8"))
    out.unlink()
    said = {re.sub(r"0x[0-9a-f]+|\d+", "#", line) for line in done.stderr.splitlines()}
    return _Started(seconds, figures["cpu"], figures["peak"], figures["result"], said)


def _strict() -> list[str]:
    """Interpreter options: development mode, and an error for each warning that a module of this package causes.

    A module has to be named in full. `-W error` alone would end most programs by a warning of their own.
    """
    paths = [path.relative_to(_ROOT).with_suffix("") for path in (_ROOT / "ort_qdq_plugin").rglob("*.py")]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return ["-X", "dev", *(f"-Werror:::{module}" for module in sorted(modules))]


def _sessions(log: str) -> list[str]:
    """What became of each session, by the log."""
    found = [match for match in map(_SESSION.match, log.splitlines()) if match]
    counted = Counter(_told(match["route"], match["rest"]) for match in found)
    return [f"{count} x {what}" if count > 1 else what for what, count in counted.items()]


def _told(route: str, rest: str) -> str:
    """A session in a few words."""
    moved = re.match(r"[\d.]+ [kMG]B", rest)
    if "the graph as it is" in rest and moved:
        return f"{moved[0]} handed over"
    return "stock" if route == "stock ONNX Runtime" else f"{route}: {rest}"


def _row(name: str, environments: _Environments, runs: int) -> tuple[list[str], list[str]]:
    program = PROGRAMS[name]
    python = environments.python(program.requirements)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = folder / "log"
        first = _started(python, program.code, folder, {})
        logged = _started(python, program.code, folder, {**_ON, "ORT_QDQ_PLUGIN_LOG_FILE": str(log)})
        sessions = _sessions(log.read_text("utf-8"))
        turns = [[_started(python, program.code, folder, variables) for variables in ({}, _ON)] for _ in range(runs)]
        strict = [_started(python, program.code, folder, variables, *_strict()) for variables in ({}, _ON)]
    without, with_it = zip(*turns, strict=True)
    problems = [] if sessions else ["no session"]
    if any(one.result != first.result for one in (logged, *without, *with_it, *strict)):
        problems.append("other results")
    problems += _new_lines((first, *without), with_it, "") + _new_lines(strict[:1], strict[1:], " under -X dev")
    seconds = [statistics.median(one.seconds for one in way) for way in (without, with_it)]
    cpu = [statistics.median(one.cpu for one in way) for way in (without, with_it)]
    peak = [statistics.median(one.peak for one in way) / 1e6 for way in (without, with_it)]
    if all(ours > max(_SLOWER * stock, stock + _FIRST_LOAD_SECONDS) for stock, ours in (seconds, cpu)):
        problems.append("slower")
    cells = [name, ", ".join(sessions), "no" if "other results" in problems else "yes"]
    for stock, ours in (seconds, cpu):
        cells += [f"{stock * 1e3:.0f}, {ours * 1e3:.0f} ms", f"{ours / stock:.2f}"]
    cells += [f"{peak[0]:.0f}, {peak[1]:.0f} MB", "; ".join(problems) or "passes"]
    return cells, problems


def _new_lines(without: Sequence[_Started], with_it: Sequence[_Started], when: str) -> list[str]:
    """What standard error has with the variable alone."""
    known = {line for one in without for line in one.said}
    new = {line for one in with_it for line in one.said if line not in known or "qdq" in line}
    return [f"standard error{when}: {line}" for line in sorted(new)]


def _main() -> int:
    made = parser(__doc__)
    made.add_argument("--environments", metavar="FOLDER", type=Path, help="where the programs are installed, and stay")
    made.add_argument("--runs", metavar="N", type=int, default=5, help="processes of each way that count (5)")
    args = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="programs-") as temporary:
        folder = Path(args.environments or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        environments = _Environments(folder, keep=args.environments is not None)

        def tried(name: str) -> tuple[list[str], list[str]]:
            try:
                return _row(name, environments, args.runs)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                return [name, *["-"] * (len(_COLUMNS) - 2), str(error)], [name]

        title = f"# Programs\n\n{_ONNX_RUNTIME}, Python {sys.version.split()[0]}; without and with the variable."
        return run({name: name for name in PROGRAMS}, tried, _COLUMNS, args, title)


if __name__ == "__main__":
    sys.exit(_main())
