"""The first-load table: the price of this package for small models.

    python -m benchmarks.first_load [--runs 15] [--against PATH] [--check]

A process loads a model twice: the first time together with importing this package (onnxruntime is imported already, in all
contenders), the second time without. Contenders are stock ONNX Runtime, this package, and this package with a cache that an
earlier process has filled. `--check` makes a missed target an error.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results import MS, Results, command
from benchmarks.small_models import SMALL_MODELS, write_small_model
from benchmarks.ways import measure, peers
from ort_qdq_plugin.cli.bench import Figure
from ort_qdq_plugin.cli.measure import Job, Peer
from ort_qdq_plugin.model.files import data_files

__all__ = ["AGAIN", "small_loads"]

_INLINE = "encoder, 54 MB, inline"
_SECOND = (_INLINE, "encoder, 54 MB, external", "QDQ stack, 64 MB, external")
_FIRST = Figure("first load ms", lambda run: run.init * MS, 1)
_CPU = Figure("CPU of it ms", lambda run: run.cpu * MS, 1)
AGAIN = Figure("second load ms", lambda run: run.again * MS, 1)


def small_loads(titles: Iterable[str], ways: Sequence[str], runs: int, args: argparse.Namespace) -> dict[str, Peer]:
    """Processes that load each of these small models twice."""
    contenders: dict[str, Peer] = {}
    for title in titles:
        with tempfile.TemporaryDirectory(prefix="ort-qdq-small-") as folder:
            model = write_small_model(title, Path(folder) / "model")
            job = Job(model, twice=True, files=(model, *data_files(model)))
            contenders |= (made := peers(ways, [job], Path(folder), args.against, f"{title}: "))
            # Another turn comes before those that count: it fills the cache, and has everything compiled.
            measure(made, runs)
    return contenders


def main() -> int:
    parser, results = command("first_load", __doc__, 15), Results("First and second loads of small models")
    parser.add_argument("--only", nargs="+", default=[*SMALL_MODELS], choices=[*SMALL_MODELS], help="these models alone")
    args = parser.parse_args()
    contenders = small_loads(args.only, ("stock-qdq", "ours-qdq", "cached"), args.runs, args)
    shown = (_FIRST, _CPU, AGAIN, "load peak")
    results.table(contenders, [_FIRST, _CPU, "faults", AGAIN, "load peak"], shown, ["stock-qdq"])
    for title in args.only:
        limit = 45 if any(run.fused for run in contenders[f"{title}: ours-qdq"].runs) else 25
        results.target(contenders, _FIRST, "ours-qdq", limit, over="stock-qdq", model=f"{title}: ")
        if title in _SECOND:
            results.target(contenders, AGAIN, "ours-qdq", 12, over="stock-qdq", model=f"{title}: ")
            results.target(contenders, _FIRST, "cached", 1.0, by="stock-qdq", model=f"{title}: ")
        if title == _INLINE:
            results.target(contenders, _FIRST, "ours-qdq", 1.1, by="stock-qdq", model=f"{title}: ")
            results.target(contenders, "load peak", "ours-qdq", 1.0, by="stock-qdq", model=f"{title}: ")
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
