"""Releases and builds of ONNX Runtime: what becomes of a model with each, and at which peak of memory.

    python -m conformance.platforms.versions [--only GLOB] [--folder FOLDER] [--markdown FILE]

Each gets an environment of its own in the folder, which is kept for the next time if it is named; up to 1 GB. This checkout
is used, not an installed package. A K-major decoder of 80 MB is loaded in fresh processes, by stock ONNX Runtime and this
package in turns; peaks are medians of VmHWM, which Linux alone has. A row holds if results are those of stock ONNX Runtime,
bit by bit, and either all is fused at a lower peak, or the report says why all is left to stock.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

from conformance.checks import parser, run
from ort_qdq_plugin.cli.demo_model import Decoder, write_model

_ROOT = Path(__file__).resolve().parents[2]
_DECODER = Decoder(layers=8, width=1024, gated=2816, vocabulary=32000)
_PRODUCTS = len(list(_DECODER.products))
_TIMES = 3
_COLUMNS = ("installed", "fused", "route", "stock's peak", "peak", "from the cache", "peak", "identical", "verdict", "why")
_BUILDS = {
    requirement.replace("==", " "): requirement
    for requirement in (
        "onnxruntime==1.24.4", "onnxruntime==1.27.0", "onnxruntime==1.28.0", "onnxruntime==1.29.0", "onnxruntime==1.30.0",
        "onnxruntime==1.31.1", "onnxruntime==1.32.0", "onnxruntime-gpu==1.31.1", "onnxruntime-openvino==1.24.1",
    )
}  # fmt: skip


def _interpreter_with(requirement: str, folder: Path) -> str:
    """The interpreter of an environment that has it, made if there is none yet."""
    place = folder / requirement.replace("==", "-")
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (place / "complete").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement, "onnx", "numpy"], check=True)
        (place / "complete").touch()
    return str(python)


def _loaded(python: str, *arguments: str) -> dict[str, Any]:
    """What `version_child` prints."""
    command = [python, "-m", "conformance.platforms.version_child", *arguments]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(name: str, model: str, folder: Path) -> tuple[list[str], list[str]]:
    python = _interpreter_with(_BUILDS[name], folder)
    problems = []
    with tempfile.TemporaryDirectory() as cache:
        ways = {"stock": ("stock",), "plain": ("ours",), "cached": ("ours", cache)}
        _loaded(python, model, "ours", cache)
        rounds = [{way: _loaded(python, model, *rest) for way, rest in ways.items()} for _ in range(_TIMES)]
    last = rounds[-1]
    peaks = {way: statistics.median(one[way]["peak"] for one in rounds) for way in ways}
    identical = len({one[way]["digest"] for one in rounds for way in ways}) == 1
    plain, cached = last["plain"], last["cached"]
    if not identical:
        problems.append("other results")
    if plain["route"] == "stock":
        problems += [] if plain["why"] else ["no reason"]
    else:
        problems += [f"{plain['fused']} of {_PRODUCTS} fused"] if plain["fused"] != _PRODUCTS else []
        problems += [f"the peak is higher ({way})" for way in ("plain", "cached") if peaks[way] >= peaks["stock"]]
    against = {way: f"{peaks[way]:.0f} MB, {peaks[way] / peaks['stock']:.2f}" for way in ("plain", "cached")}
    through = f"{cached['route']}, {cached['cache']}" if cached["cache"] else cached["route"]
    verdict = "**FAIL**: " + "; ".join(problems) if problems else "holds"
    cells = [name, f"{plain['fused']} of {_PRODUCTS}", plain["route"], f"{peaks['stock']:.0f} MB", against["plain"], through,
             against["cached"], "yes" if identical else "no", verdict, plain["why"]]  # fmt: skip
    return cells, problems


def _main() -> int:
    made = parser(__doc__)
    made.add_argument("--folder", type=Path, help="where the environments are made, and kept")
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model = str(write_model(Path(temporary) / "model", True, _DECODER))
        folder = args.folder or Path(temporary) / "environments"

        def tried(name: str) -> tuple[list[str], list[str]]:
            try:
                return _row(name, model, folder)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                return [name, *["-"] * (len(_COLUMNS) - 3), "**FAIL**", str(error)], [name]

        return run({name: name for name in _BUILDS}, tried, _COLUMNS, args, "# Releases and builds of ONNX Runtime")


if __name__ == "__main__":
    sys.exit(_main())
