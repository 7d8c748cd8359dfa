"""What this package relies on in ONNX Runtime, checked against the one that is installed.

    python -m conformance.contracts [--only GLOB] [--markdown FILE]

None of it is documented as a promise, so that a new release may change it. Every check is a small function whose docstring
says what is relied on and where; they use ONNX Runtime alone, not this package. The exit code is 1 if one fails.
"""

import sys
import tempfile
from inspect import cleandoc, isfunction
from pathlib import Path
from types import FunctionType

import onnxruntime as ort

from conformance.checks import parser, run
from conformance.contracts import buffers, kernels, options, sessions
from conformance.contracts.contract import BrokenError
from conformance.sessions import SILENT

CONTRACTS: dict[str, FunctionType] = {
    name.replace("_", " "): value
    for module in (buffers, options, sessions, kernels)
    for name, value in vars(module).items()
    if isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
}


def _checked(contract: FunctionType) -> tuple[list[str], list[str]]:
    """A contract's row, and what was seen instead where it is broken."""
    verdict = "**FAIL**"
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        try:
            seen, verdict = contract(Path(folder)), "pass"
        except BrokenError as error:
            seen = str(error)
        except Exception as error:  # whatever a release raises instead is a finding
            seen = f"{type(error).__name__}: {error}"
    relied_on = cleandoc(contract.__doc__ or "").replace("\n", " ")
    name = contract.__name__.replace("_", " ")
    return [verdict, name, " ".join(seen.split())[:300], relied_on], [seen] if verdict != "pass" else []


def main() -> int:
    args = parser(__doc__).parse_args()
    # Refusals are expected; ONNX Runtime need not log them.
    ort.set_default_logger_severity(SILENT)
    title = f"# Contracts with onnxruntime {ort.__version__}"
    return run(CONTRACTS, _checked, ("verdict", "contract", "seen", "relied on"), args, title)


if __name__ == "__main__":
    sys.exit(main())
