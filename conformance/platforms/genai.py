"""The tests of `ort_qdq_plugin.genai` with each version of onnxruntime-genai that it knows, and with one that is too old.

    python -m conformance.platforms.genai [--only GLOB] [--markdown FILE]

Each version is installed into a temporary folder, beside the ONNX Runtime of this interpreter. With one that is too old, a
model is still created, by stock onnxruntime-genai; the tests are left out.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

from conformance.checks import parser, run
from ort_qdq_plugin.genai.calls import KNOWN

__all__ = ["VERSIONS"]

VERSIONS = ("0.10.0", "0.11.4", "0.12.2", "0.13.2", "0.14.1", "0.15.2", "0.16.0", "0.17.1", "0.18.0")
_ROOT = Path(__file__).parents[2]
_LOAD = """
import sys
from pathlib import Path
import onnxruntime_genai as og
from ort_qdq_plugin import genai
from tests.genai.small_model import tokens, write_model
folder = write_model(Path(sys.argv[1]))
wanted = tokens(og.Model(str(folder)))
model = genai.load(folder)
assert tokens(model) == wanted
print(og.__version__, len(genai.report_of(model)["model.onnx"].fused) if genai.report_of(model) else 0)
"""


def _tried(version: str) -> tuple[list[str], list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        subprocess.run([*install, f"onnxruntime-genai=={version}"], check=True)
        environment = {**os.environ, "PYTHONPATH": folder, "ORT_QDQ_PLUGIN": "0"}

        def said(*command: str) -> tuple[bool, str]:
            done = subprocess.run(
                [sys.executable, *command], env=environment, cwd=_ROOT, capture_output=True, text=True, check=False
            )
            lines = (done.stdout or done.stderr).strip().splitlines()
            return done.returncode == 0, lines[-1] if lines else ""

        loads, words = said("-c", _LOAD, str(Path(folder) / "model"))
        loads = loads and words.startswith(version)
        known = _minor(KNOWN[0]) <= _minor(version) <= _minor(KNOWN[1])
        fused = loads and words.endswith(" 1")
        cells = [version, "yes" if loads else f"**FAIL** {words}", "yes" if fused else "no", "-"]
        passed = True
        if known:
            passed, cells[3] = said("-m", "pytest", "-q", "tests/genai")
        return cells, [] if loads and passed and fused == known else [version]


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def _main() -> int:
    args = parser(__doc__).parse_args()
    title = f"ONNX Runtime {onnxruntime.__version__}"
    columns = ["onnxruntime-genai", "loads as in stock", "fused", "tests/genai"]
    return run({version: version for version in VERSIONS}, _tried, columns, args, title)


if __name__ == "__main__":
    sys.exit(_main())
