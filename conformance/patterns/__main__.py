"""The pattern table: every pattern through unoptimized ORT, stock ORT and this package.

    python -m conformance.patterns [--quick] [--only GLOB] [--group 2|3] [--form bytes|file|external] [--markdown FILE]

A row passes if the package does what the pattern expects, says so truthfully, gives stock ORT's very bits wherever
stock fuses the same nodes, and stays within the error limits against the unoptimized model. The exit code is 1 if a row
fails.
"""

import sys
from collections.abc import Sequence

import onnx
import onnxruntime as ort

from conformance.checks import chosen, parser
from conformance.markdown import table
from conformance.patterns.catalogue import PATTERNS, quick_patterns
from conformance.patterns.judging import FORMS, FUSION_KEY, LEVELS, ROW_COUNTS, Row, check

__all__ = ["main"]

_GROUPS = {2: "Plain layouts", 3: "Layouts that exporters write besides"}
_COLUMNS = ("pattern", "stock", "stock+key", "this package", "identical", "error L0", "error L4", "verdict")


def _markdown(rows: Sequence[Row]) -> str:
    lines = f"""# The pattern table

onnxruntime {ort.__version__}, onnx {onnx.__version__}, CPU provider. `stock+key` is stock ORT with `{FUSION_KEY}=1`.
`identical` compares with stock's outputs, to the last bit, at accuracy levels {" and ".join(map(str, LEVELS))} and with
{", ".join(map(str, ROW_COUNTS))} rows, wherever stock fuses the same nodes or nothing is fused, and stock is right.
Stock is wrong on 2-bit [K, N] weights whose N is no multiple of 4: it transposes them wrongly.
Errors are max|a-b|/max|a| against the unoptimized model.""".splitlines()
    for group in sorted({row.pattern.group for row in rows}):
        lines += [
            "",
            f"## {_GROUPS[group]}",
            "",
            *table(_COLUMNS, [row.cells for row in rows if row.pattern.group == group]),
        ]
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the table; 1 if a row fails."""
    options = parser(__doc__, quick="only the subset for every commit")
    options.add_argument("--group", type=int, choices=tuple(_GROUPS), help="only this group's patterns")
    options.add_argument(
        "--form", choices=FORMS, default="bytes", help="how models are handed over: bytes, a file, or with external data"
    )
    args = options.parse_args(argv)
    rows = []
    for pattern in chosen(quick_patterns() if args.quick else PATTERNS, args):
        if args.group in (None, pattern.group):
            rows.append(check(pattern, form=args.form))
            print(" | ".join(rows[-1].cells), flush=True)
    failed = sum(not row.passed for row in rows)
    closing = f"{len(rows) - failed} passed, {failed} failed"
    print(closing)
    if args.markdown:
        args.markdown.write_text(f"{_markdown(rows)}\n{closing}\n", encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
