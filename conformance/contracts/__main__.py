"""What this package relies on in ONNX Runtime, checked against the one that is installed.

    python -m conformance.contracts [--only GLOB] [--markdown FILE]

None of it is documented as a promise, so that a new release may change it. Every check is a small function whose docstring
says what is relied on and where; they use ONNX Runtime alone, not this package. The exit code is 1 if one fails.
"""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import onnxruntime as ort

from conformance.checks import chosen, parser
from conformance.contracts import buffers, kernels, options, sessions
from conformance.contracts.contract import BrokenError, Contract
from conformance.markdown import table
from conformance.sessions import SILENT

__all__ = ["CONTRACTS", "main"]

_MODULES = (buffers, options, sessions, kernels)
CONTRACTS = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Contract)]


def _checked(contract: Contract) -> tuple[bool, str]:
    """Whether it holds, and what was seen."""
    with tempfile.TemporaryDirectory(prefix="contracts-") as folder:
        try:
            return True, contract.run(Path(folder))
        except BrokenError as error:
            return False, str(error)
        except Exception as error:  # whatever a release raises instead is a finding
            return False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check the contracts that the command line asks for; 1 if one is broken."""
    args = parser(__doc__).parse_args(argv)
    # Refusals are expected; ONNX Runtime need not log them.
    with suppress(AttributeError):
        ort.set_default_logger_severity(SILENT)
    rows, failed = [], 0
    for contract in chosen(CONTRACTS, args):
        holds, seen = _checked(contract)
        failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {contract.name}: {seen}", flush=True)
        rows.append([contract.name, "pass" if holds else "**FAIL**", seen, contract.relied_on])
    closing = f"{len(rows) - failed} passed, {failed} failed"
    print(closing)
    if args.markdown:
        lines = table(("contract", "verdict", "seen", "relied on"), rows)
        args.markdown.write_text("\n".join([f"# Contracts with onnxruntime {ort.__version__}", "", *lines, "", closing, ""]))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
