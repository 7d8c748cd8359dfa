"""The start-up table: what this package costs a process that does not use it, and one that does.

    python -m conformance.tables.startup [--runs 50]

Two bare virtual environments are made, one with this package's start-up file and one without. Interpreters are started in
turns, each pinned to one processor where that is possible, and timed from outside. Exit status 1 where a target is missed.

Other work on the machine slows down some starts and not others: differences are medians over the turns of what two starts of
one turn differ by, and processor time stands beside the time that passed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[2]
_START_FILE = _ROOT / "ort_qdq_plugin" / "switch" / "ort_qdq_plugin.pth"
_VARIABLE = "ORT_QDQ_PLUGIN"
_HEAVY = ("numpy", "onnx", "onnxruntime")
_TARGET_MS = 1.0
_PASS = "pass"
_LIST_MODULES = "import sys; print(*sys.modules)"
_PLACES_KEY = "PYTHONPATH"


@dataclass(frozen=True)
class Contender:
    """A way of starting an interpreter."""

    title: str
    python: Path
    code: str
    environment: Mapping[str, str]

    def start(self) -> Start:
        """Start it once, and wait for its end."""
        arguments = [str(self.python), "-c", self.code]
        start = time.perf_counter()
        child = os.posix_spawn(self.python, arguments, dict(self.environment))
        _, status, usage = os.wait4(child, 0)
        passed = time.perf_counter() - start
        if status:
            raise RuntimeError(f"{self.title}: exit code {os.waitstatus_to_exitcode(status)}")
        return Start(passed * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)


@dataclass(frozen=True)
class Start:
    """What one start took, in milliseconds."""

    passed: float
    processor: float


def _bare_environment(folder: Path, start_file: bool) -> Path:
    """The interpreter of a new virtual environment with nothing in it but, maybe, the start-up file."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    if start_file:
        packages = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        Path(packages, _START_FILE.name).write_bytes(_START_FILE.read_bytes())
    return python


def _environment(folder: Path, **changes: str) -> dict[str, str]:
    """This process's environment without the variables of this package, and with this checkout to import.

    Modules are compiled once, as where a package is installed, but not into the checkout.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_VARIABLE) and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, _PLACES_KEY: str(_ROOT), "PYTHONPYCACHEPREFIX": str(folder / "compiled"), **changes}


def _output(python: Path, code: str, environment: Mapping[str, str]) -> str:
    done = subprocess.run([python, "-c", code], env=dict(environment), capture_output=True, text=True, check=True)
    return done.stdout


def _interleaved(contenders: Sequence[Contender], runs: int) -> dict[str, list[Start]]:
    """Every start, turn by turn; the first turn only warms the caches."""
    starts: dict[str, list[Start]] = {contender.title: [] for contender in contenders}
    for turn in range(runs + 1):
        # Who starts behind whom changes, so that none is always behind the slowest.
        shift = turn % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            start = contender.start()
            if turn:
                starts[contender.title].append(start)
    return starts


def _difference(starts: Sequence[Start], base: Sequence[Start]) -> float:
    """Milliseconds that one takes longer than the other, in the middle of all turns."""
    return median(ours.passed - other.passed for ours, other in zip(starts, base, strict=True))


def _rows(starts: Mapping[str, list[Start]]) -> Iterator[str]:
    """Each contender beside the first one."""
    base = next(iter(starts.values()))
    middle = median(start.passed for start in base)
    yield "| start of an interpreter | min | median | difference | ratio | processor, median |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for title, own in starts.items():
        passed = [start.passed for start in own]
        processor = median(start.processor for start in own)
        cells = (
            title,
            f"{min(passed):.2f} ms",
            f"{median(passed):.2f} ms",
            f"{_difference(own, base):+.2f} ms",
            f"{median(passed) / middle:.3f}",
            f"{processor:.2f} ms",
        )
        yield f"| {' | '.join(cells)} |"


@contextmanager
def _on_one_processor() -> Iterator[None]:
    """Keep this process, and those that it starts, from moving between processors."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _waiting(folder: Path, runs: int) -> list[str]:
    """Print the table of processes that do not import onnxruntime; what is wrong with it."""
    without, with_file = (_bare_environment(folder / name, name == "with") for name in ("without", "with"))
    unset, is_set = _environment(folder), _environment(folder, **{_VARIABLE: "1"})
    contenders = [
        Contender("no start-up file", without, _PASS, unset),
        Contender("start-up file, variable unset", with_file, _PASS, unset),
        Contender("start-up file, variable set", with_file, _PASS, is_set),
    ]
    starts = _interleaved(contenders, runs)
    print("\n".join(["## python -c pass", "", *_rows(starts), ""]))
    problems = []
    cost = _difference(starts[contenders[1].title], starts[contenders[0].title])
    verdict = "PASS" if cost < _TARGET_MS else "FAIL"
    target = f"start-up file with the variable unset: {cost:+.3f} ms (< {_TARGET_MS:g} ms)"
    print(f"- {verdict}: {target}")
    if cost >= _TARGET_MS:
        problems.append(target)
    plain = set(_output(without, _LIST_MODULES, unset).split())
    for title, environment in (("unset", unset), ("set", is_set)):
        more = sorted(set(_output(with_file, _LIST_MODULES, environment).split()) - plain)
        print(f"- modules imported with the variable {title}: {', '.join(more) or 'none'}")
        unwanted = [module for module in more if module in _HEAVY or title == "unset"]
        if unwanted:
            problems.append(f"with the variable {title}, the start imports {', '.join(unwanted)}")
    return problems


def _importing(folder: Path, runs: int) -> None:
    """Print the table of processes that import onnxruntime, from where this interpreter has it."""
    places = os.pathsep.join([str(_ROOT), *(place for place in sys.path if place.endswith("-packages"))])
    python = folder / "with" / "bin" / "python"
    contenders = [
        Contender("variable unset", python, "import onnxruntime", _environment(folder, **{_PLACES_KEY: places})),
        Contender(
            "variable set", python, "import onnxruntime", _environment(folder, **{_PLACES_KEY: places, _VARIABLE: "1"})
        ),
    ]
    print("\n".join(["", "## import onnxruntime", "", *_rows(_interleaved(contenders, runs))]))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and judge; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="starts of each kind (default 50)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, _on_one_processor():
        folder = Path(name)
        problems = _waiting(folder, args.runs)
        _importing(folder, max(1, args.runs // 5))
    for problem in problems:
        print(f"missed: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
