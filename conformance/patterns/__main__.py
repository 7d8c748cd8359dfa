"""The pattern table: every pattern through unoptimized ORT, stock ORT and this package.

    python -m conformance.patterns [--quick] [--only GLOB] [--group 2|3] [--form bytes|file|external] [--markdown FILE]

A row passes if the package does what the pattern expects, says so truthfully, gives stock ORT's very bits wherever
stock fuses the same nodes, and stays within the error limits against the unoptimized model. The exit code is 1 if a row
fails.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx.reference
import onnxruntime as ort

from conformance.markdown import table
from conformance.patterns.catalogue import PATTERNS, quick_patterns
from conformance.patterns.judging import Row, check
from conformance.patterns.running import FORMS, FUSION_KEY, LEVELS, ROW_COUNTS

__all__ = ["main", "markdown"]

_GROUPS = {2: "Plain layouts", 3: "Layouts that exporters write besides"}


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown document."""
    passed = sum(row.passed for row in rows)
    header = ("pattern", "stock", "stock+key", "this package", "identical", "error L0", "error L4", "verdict")
    lines = [
        "# The pattern table",
        "",
        f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, CPU provider. "
        f"`stock+key` is stock ORT with `{FUSION_KEY}=1`.",
        "`identical` compares with stock's outputs, to the last bit, at accuracy levels "
        + " and ".join(map(str, LEVELS))
        + " and with",
        ", ".join(map(str, ROW_COUNTS))
        + " rows, wherever stock fuses the same nodes or nothing is fused, and stock is right.",
        "Stock is wrong on 2-bit [K, N] weights whose N is no multiple of 4: it transposes them wrongly.",
        "Errors are max|a-b|/max|a| against the unoptimized model.",
    ]
    for group in sorted({row.pattern.group for row in rows}):
        lines += ["", f"## {_GROUPS[group]}", ""]
        lines += table(header, [row.cells for row in rows if row.pattern.group == group])
    return "\n".join([*lines, "", f"{passed} passed, {len(rows) - passed} failed", ""])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m conformance.patterns", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the subset for every commit")
    parser.add_argument("--only", metavar="GLOB", default="*", help="only patterns with such names")
    parser.add_argument("--group", type=int, choices=tuple(_GROUPS), help="only this group's patterns")
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="bytes",
        help="how models are handed over: bytes, a file, or a file with external data",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the table; 1 if a row fails."""
    arguments = _arguments(argv)
    chosen = [
        pattern
        for pattern in (quick_patterns() if arguments.quick else PATTERNS)
        if fnmatch.fnmatch(pattern.name, arguments.only) and arguments.group in (None, pattern.group)
    ]
    rows = []
    for pattern in chosen:
        rows.append(check(pattern, form=arguments.form))
        print(" | ".join(rows[-1].cells), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows), encoding="utf-8")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
