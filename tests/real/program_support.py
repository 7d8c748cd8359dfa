"""Running programs of this folder that know nothing of the package, with and without the variable that switches it on."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ort_qdq_plugin
from ort_qdq_plugin import StockReason

__all__ = ["Ran", "run_program", "same_with_and_without"]

PREFIX = re.compile(r"ort-qdq-plugin\[\d+\]: ")
START_FILE = "ort_qdq_plugin.pth"


@dataclass(frozen=True)
class Ran:
    """What a program printed, as JSON, and the lines that this package logged."""

    output: Any
    log: tuple[str, ...]

    def fused(self, model: Path) -> list[tuple[int, int]]:
        """(fused, left) of each session that was made of `model`, as the log has it."""
        wanted = re.compile(re.escape(f"{model}: ") + r"borrowed: (\d+) fused(?:, (\d+) left)?,")
        found = [wanted.match(line) for line in self.log]
        return [(int(match[1]), int(match[2] or 0)) for match in found if match]

    def left_to_stock(self, model: Path) -> int:
        """How many sessions of `model` were left to stock ONNX Runtime because nothing in it is quantized."""
        return sum(line == f"{model}: stock ONNX Runtime: {StockReason.NOT_QUANTIZED}" for line in self.log)

    def handed_over(self, model: Path) -> int:
        """How many sessions of `model` were handed over unchanged because nothing in it is quantized."""
        begins = f"{model}: borrowed: "
        return sum(line.startswith(begins) and str(StockReason.NOT_QUANTIZED) in line for line in self.log)


def run_program(*command: str | Path, active: bool, **variables: str) -> Ran:
    """Run a script of this folder in a process of its own, with the variable set or not; fails if the program fails.

    `variables` are further ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            check=False,
            cwd=Path(__file__).parent,
            env={**_environment(Path(folder), active), **variables},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    lines = done.stderr.splitlines()
    log = tuple(line[match.end() :] for line in lines if (match := PREFIX.match(line)))
    return Ran(json.loads(done.stdout), log)


def same_with_and_without(*command: str | Path) -> Ran:
    """Run a script both ways: what it prints must be equal to the last digit, and without the variable nothing is logged."""
    without, ran = (run_program(*command, active=active) for active in (False, True))
    assert not without.log
    assert ran.output == without.output
    return ran


def _environment(folder: Path, active: bool) -> Mapping[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_QDQ_PLUGIN")}
    environment |= {"HF_HUB_OFFLINE": "1", "FASTEMBED_CACHE_PATH": str(folder)}
    if not any((Path(sysconfig.get_path(place)) / START_FILE).is_file() for place in ("purelib", "platlib")):
        # Not installed: the same line, run by the interpreter's other hook, and the package from where it is.
        package = Path(ort_qdq_plugin.__file__).parent
        (folder / "sitecustomize.py").write_text((package / START_FILE).read_text())
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(package.parent)])
    if active:
        environment |= {"ORT_QDQ_PLUGIN": "1", "ORT_QDQ_PLUGIN_LOG": "info"}
    return environment
