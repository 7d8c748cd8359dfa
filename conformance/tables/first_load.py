"""The first-load table: the price of this package for small models.

    python -m conformance.tables.first_load [--runs 15] [--markdown FILE] [--check]

A process loads a model twice: the first time together with importing this package (onnxruntime is imported already, in all
contenders), the second time without. Contenders are stock ONNX Runtime, this package, and this package with a cache that an
earlier process has filled. `--check` makes a missed target an error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conformance.tables.measuring import MB, Results, Run, Section, Target, facts, finish, interleave, memory, row, say
from conformance.tables.small_models import SMALL_MODELS, write_small_model

__all__ = ["main"]

_MODULE = "conformance.tables.first_load"
_WAYS = ("stock", "ours", "cached")
_FUSED_MS, _UNFUSED_MS, _SECOND_MS = 45, 25, 12
_INLINE = "encoder, 54 MB, inline"
_SECOND = ("encoder, 54 MB, inline", "encoder, 54 MB, external", "QDQ stack, 64 MB, external")


@dataclass(frozen=True)
class _Job:
    way: str
    model: str
    cache_dir: str


@dataclass(frozen=True)
class _TwoLoads(Run):
    """`init_seconds` are those of the first load."""

    second_seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.init_seconds * 1e3:.1f} ms, then {self.second_seconds * 1e3:.1f} ms, peak {self.end.high / MB:.0f} MB"


def _do(job: _Job) -> _TwoLoads:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    before = memory()
    start = time.perf_counter()
    session = _load(job)
    first = time.perf_counter() - start
    after = memory()
    del session
    start = time.perf_counter()
    session = _load(job)
    second = time.perf_counter() - start
    report = None
    if job.way != "stock":
        import ort_qdq_plugin

        report = ort_qdq_plugin.report_of(session)
    # The peak of one load: the second one's is not of interest.
    return _TwoLoads(init_seconds=first, second_seconds=second, before=before, after=after, end=after, report=facts(report))


def _load(job: _Job) -> Any:
    if job.way == "stock":
        import onnxruntime

        return onnxruntime.InferenceSession(job.model)
    from ort_qdq_plugin import Options, create_session

    return create_session(job.model, options=Options(cache_dir=job.cache_dir if job.way == "cached" else None))


def _measured(title: str, folder: Path, runs: int) -> dict[str, Results[_TwoLoads]]:
    model = write_small_model(title, folder)
    jobs = {way: _Job(way, str(model), str(folder / "cache")) for way in _WAYS}
    say(title)
    interleave(_MODULE, jobs, 1, _TwoLoads)  # fills the cache, and has everything compiled
    return interleave(_MODULE, jobs, runs, _TwoLoads)


def _section(measured: dict[str, dict[str, Results[_TwoLoads]]]) -> Section:
    columns = ["model", *(f"{load}: {way}" for load in ("first load", "second load") for way in _WAYS)]
    lines = [row([*columns, *(f"peak: {way}" for way in _WAYS)]), row(["---"] * (len(columns) + len(_WAYS)))]
    targets, errors = [], []
    for title, results in measured.items():
        if not all(results.values()):
            errors += [f"{title}, {way}: {result.failure}" for way, result in results.items() if result.failure]
            continue
        first = {way: result.init * 1e3 for way, result in results.items()}
        second = {way: result.median(lambda run: run.second_seconds) * 1e3 for way, result in results.items()}
        peak = {way: result.peak for way, result in results.items()}
        times = [f"{seconds[way]:.1f} ms" for seconds in (first, second) for way in _WAYS]
        lines.append(row([title, *times, *(f"{peak[way] / MB:.0f} MB" for way in _WAYS)]))
        fused = bool(results["ours"].report["fused"])
        over = first["ours"] - first["stock"]
        targets.append(Target(f"{title}: first load over stock", over, _FUSED_MS if fused else _UNFUSED_MS, "ms"))
        if title in _SECOND:
            targets.append(Target(f"{title}: second load over stock", second["ours"] - second["stock"], _SECOND_MS, "ms"))
        if title == _INLINE:
            targets.append(Target(f"{title}: first load", first["ours"] / first["stock"], 1.1))
            targets.append(Target(f"{title}: peak", peak["ours"] / peak["stock"], 1.0))
        if title in _SECOND:
            targets.append(Target(f"{title}: first load from the cache", first["cached"] / first["stock"], 1.0))
    return Section("First and second load of small models", lines, targets, errors)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="fresh processes of each contender (default 15)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(asdict(_do(_Job(**json.loads(args.child))))))
        return 0
    with tempfile.TemporaryDirectory(prefix="ort-qdq-first-load-") as folder:
        # An installed package has its bytecode.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        measured = {
            title: _measured(title, Path(folder) / str(number), args.runs) for number, title in enumerate(SMALL_MODELS)
        }
    return finish("First load", [_section(measured)], args)


if __name__ == "__main__":
    sys.exit(main())
