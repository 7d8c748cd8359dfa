"""What real tools write, and what becomes of it.

    python -m conformance.tools [--only GLOB] [--markdown FILE] [--environments FOLDER]

Each tool is installed into an environment of its own (0.3 to 2 GB, one at a time unless a folder is given)
and writes small models. A row passes if the table in `conformance.tools.expected` says what becomes of it, level 0 is
within 1e-5 of the unoptimized model, results are stock's wherever that fuses as much, and no integer kernel of stock's is
gone. The exit code is 1 if a row fails.
"""

import sys
import tempfile
from pathlib import Path

import onnxruntime as ort

from conformance.checks import parser, run
from conformance.sessions import SILENT
from conformance.tools.expected import EXPECTED
from conformance.tools.judging import outcome_of
from conformance.tools.workshop import Workshop

COLUMNS = ("model", "fused by stock", "this package", "verdict")
_TITLE = f"# What tools write\n\nonnxruntime {ort.__version__}, CPU provider, accuracy level 4."
_Checked = tuple[tuple[str, ...], list[str]]


def _check(workshop: Workshop, tool: str, name: str) -> _Checked:
    folder = workshop.written(tool)
    wrong = [f"there is no row of {path.stem}" for path in folder.glob("*.onnx") if path.stem not in EXPECTED[tool]]
    outcome = outcome_of(folder / f"{name}.onnx")
    wrong += outcome.problems
    expected = EXPECTED[tool][name]
    if outcome.verdict != expected:
        wrong.append(f"not {expected}")
    return (f"{tool}: {name}", str(outcome.fused_by_stock), outcome.verdict, "; ".join(wrong) or "as expected"), wrong


def main() -> int:
    """The command line."""
    command = parser(__doc__)
    command.add_argument("--environments", metavar="FOLDER", type=Path, help="where the tools are installed, and stay")
    args = command.parse_args()
    ort.set_default_logger_severity(SILENT)
    checks = {f"{tool}: {name}": (tool, name) for tool, rows in EXPECTED.items() for name in rows}
    with tempfile.TemporaryDirectory(prefix="tools-") as folder:
        workshop = Workshop(Path(folder), args.environments and args.environments.resolve())
        return run(checks, lambda check: _check(workshop, *check), COLUMNS, args, _TITLE)


if __name__ == "__main__":
    sys.exit(main())
