"""The pattern table: every pattern through unoptimized ORT, stock ORT and this package.

    python -m conformance.patterns [--quick] [--only GLOB] [--markdown FILE]

A row passes if the package does what the pattern expects, says so truthfully, gives stock ORT's very bits wherever
stock fuses the same nodes, and stays within the error limits against the unoptimized model. The exit code is 1 if a row
fails.
"""

import sys

import onnx
import onnxruntime as ort

from conformance.checks import parser, run
from conformance.patterns.catalogue import PATTERNS, quick_patterns
from conformance.patterns.judging import COLUMNS, FUSION_KEY, LEVELS, ROW_COUNTS, check

_TITLE = f"""# The pattern table

onnxruntime {ort.__version__}, onnx {onnx.__version__}, CPU provider. `stock+key` is stock ORT with `{FUSION_KEY}=1`.
`identical` compares with stock's outputs, to the last bit, at accuracy levels {" and ".join(map(str, LEVELS))} and with
{", ".join(map(str, ROW_COUNTS))} rows, wherever stock fuses the same nodes or nothing is fused, and stock is right.
Products in another form have other bits or blocks than stock's, chosen for speed (`conformance.choices`).
Stock is wrong on 2-bit [K, N] weights whose N is no multiple of 4: it transposes them wrongly.
Errors are max|a-b|/max|a| against the unoptimized model."""


def main() -> int:
    args = parser(__doc__, quick="only the subset for every commit").parse_args()
    patterns = {pattern.name: pattern for pattern in (quick_patterns() if args.quick else PATTERNS)}
    return run(patterns, check, COLUMNS, args, _TITLE)


if __name__ == "__main__":
    sys.exit(main())
