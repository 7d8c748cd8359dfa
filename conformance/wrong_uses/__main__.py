"""A table of wrong uses of the calls, the variables and the commands, with what each of them is told.

    python -m conformance.wrong_uses [--only GLOB] [--markdown FILE]

The message must name the argument or the variable, and what to do. A use that is taken in silence fails, and so does one
that gets another error than those that are documented. The exit code is 1 if one fails.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from conformance.checks import parser, run
from conformance.sessions import SILENT
from conformance.wrong_uses import api, commands, models, variables
from conformance.wrong_uses.use import Use, tried

__all__ = ["USES"]

USES = {use.what: use for module in (api, models, variables, commands) for use in module.USES}


def _row(use: Use) -> tuple[Sequence[str], Sequence[str]]:
    """The row of a wrong use, and what is wrong with what it is told."""
    with tempfile.TemporaryDirectory(prefix="wrong-uses-") as folder:
        message, problem = tried(use, Path(folder))
        message = message.replace(folder, ".")
    verdict = f"**FAIL** {problem}" if problem else "pass"
    return [verdict, f"`{use.what}`", " ".join(message.split())], [problem] if problem else []


def main() -> int:
    args = parser(__doc__).parse_args()
    ort.set_default_logger_severity(SILENT)
    return run(USES, _row, ("verdict", "wrong use", "what it is told"), args, "# Wrong uses")


if __name__ == "__main__":
    sys.exit(main())
