"""The start-up table: what this package costs a process that does not use it, and one that does.

    python -m benchmarks.startup [--runs 50] [--against PATH]

Two bare virtual environments are made, one with this package's start-up file and one without, and a further one for each
other checkout. Interpreters are started in turns, each pinned to one processor, and timed from outside. Exit status 1 where
a target is missed.

Other work on the machine slows down some starts and not others: differences are medians over the turns of what two starts of
one turn differ by, and processor time stands beside the time that passed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.results import MS, Results, command
from benchmarks.ways import HERE
from conformance.drawing.elements import Array
from conformance.markdown import table
from ort_qdq_plugin.system.environment import PREFIX

_HEAVY = ("numpy", "onnx", "onnxruntime")
_COLUMNS = ("start of an interpreter", "min ms", "median ms", "CPU ms", "difference ms", "ratio")


class _Contender(NamedTuple):
    """A way of starting an interpreter."""

    python: Path
    environment: Mapping[str, str]
    code: str = "pass"

    def start(self) -> tuple[float, float]:
        """Seconds that passed, and of CPU."""
        begun = time.perf_counter()
        child = os.posix_spawn(self.python, [str(self.python), "-c", self.code], dict(self.environment))
        _, status, usage = os.wait4(child, 0)
        passed = time.perf_counter() - begun
        if status:
            raise RuntimeError(f"{self.python}: exit code {os.waitstatus_to_exitcode(status)}")
        return passed, usage.ru_utime + usage.ru_stime

    def modules(self) -> set[str]:
        command = [str(self.python), "-c", "import sys; print(*sys.modules)"]
        return set(subprocess.check_output(command, env=dict(self.environment), text=True).split())


def _bare_environment(folder: Path, *start_files: Path) -> Path:
    """The interpreter of a new virtual environment with nothing in it but start-up files."""
    venv.create(folder, with_pip=False, symlinks=True)
    for file in start_files:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / file.name).write_bytes(file.read_bytes())
    return folder / "bin" / "python"


def _environment(folder: Path, *places: object, variable: str = "") -> dict[str, str]:
    """This process's environment without the variables of this package, and with these folders to import from.

    Modules are compiled once, as where a package is installed, but not into the checkout.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith((PREFIX, "PYTHONDONTWRITEBYTECODE"))}
    path, compiled = os.pathsep.join(map(str, places)), str(folder / "compiled")
    return {**kept, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": compiled, **({PREFIX: variable} if variable else {})}


def _table(results: Results, title: str, contenders: Mapping[str, _Contender], runs: int) -> Array:
    """Add every start, turn by turn, to the results: by how many milliseconds each took longer than the first.

    The first turn only warms the caches.
    """
    starts = np.zeros((len(contenders), runs + 1, 2))
    for turn in range(runs + 1):
        # Who starts behind whom changes, so that none is always behind the slowest.
        for index in np.roll(range(len(contenders)), -turn):
            starts[index, turn] = list(contenders.values())[index].start()
    passed, cpu = MS * starts[:, 1:].transpose(2, 0, 1)  # [contenders, turns] each
    middle = np.median(passed, axis=1)
    over: Array = np.median(passed - passed[0], axis=1)
    figures = zip(contenders, passed.min(axis=1), middle, np.median(cpu, axis=1), over, middle / middle[0], strict=True)
    rows = [[name, f"{least:.2f}", f"{mid:.2f}", f"{own:.2f}", f"{more:+.2f}", f"{part:.3f}"]
            for name, least, mid, own, more, part in figures]  # fmt: skip
    results.say("\n".join([f"\n## {title}\n", *table(_COLUMNS, rows), ""]))
    return over


def _measure(results: Results, folder: Path, args: argparse.Namespace) -> None:
    waiting = {"no start-up file": _Contender(_bare_environment(folder / "bare"), _environment(folder, HERE.folder))}
    importing = {}
    installed = [place for place in sys.path if place.endswith("-packages")]
    for checkout in (HERE, *args.against):
        python = _bare_environment(folder / f"with{checkout.label}", *checkout.folder.glob("ort_qdq_plugin/**/*.pth"))
        for title, variable in (("unset", ""), ("set", "1")):
            name = f"variable {title}{checkout.label}"
            waiting[f"start-up file, {name}"] = _Contender(python, _environment(folder, checkout.folder, variable=variable))
            environment = _environment(folder, checkout.folder, *installed, variable=variable)
            importing[name] = _Contender(python, environment, "import onnxruntime")
    over = _table(results, "python -c pass", waiting, args.runs)
    results.judge("start-up file with the variable unset, over none", over[1], 1.0, "ms")
    plain = waiting["no start-up file"].modules()
    for title in ("unset", "set"):
        more = sorted(waiting[f"start-up file, variable {title}"].modules() - plain)
        results.say(f"- modules imported with the variable {title}: {', '.join(more) or 'none'}")
        if unwanted := [module for module in more if module in _HEAVY or title == "unset"]:
            results.error(f"with the variable {title}, the start imports {', '.join(unwanted)}")
    _table(results, "import onnxruntime", importing, max(1, args.runs // 5))


def main() -> int:
    args, results = command("startup", __doc__, 50).parse_args(), Results("Starts of an interpreter")
    args.check = True
    if sys.platform == "linux":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="ort-qdq-startup-") as folder:
        _measure(results, Path(folder), args)
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
