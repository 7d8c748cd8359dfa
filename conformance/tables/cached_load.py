"""The table of the cache: later loads of a large model, and what several processes of it cost together.

    python -m conformance.tables.cached_load [--layers 32] [--runs 5] [--processes 4] [--dir FOLDER] [--check]

A first load fills the cache, once with and once without shared pre-packed weights. Then fresh processes take turns: the
QOperator model in stock ONNX Runtime, this package without a cache, from the cache, and from the cache with shared weights.
After that, some processes hold a session each at the same time, and one process compares the latency of both kinds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np

from conformance.tables.contenders import CHILD, CONTENDERS, Job, Measurement, runner
from conformance.tables.decoder import ensure_pair, spec_of
from conformance.tables.measuring import MB, Results, Section, Target, finish, interleave, own_seconds, row, say

__all__ = ["main"]

_MODULE = "conformance.tables.cached_load"
_WAYS = ("stock-qop", "ours-qdq", "cached", "shared")
_TOKENS = 60  # of either session, for the latency


def _hold(job: Job) -> None:
    """Load, say so, and keep the session until the parent closes the pipe."""
    import ort_qdq_plugin

    run = runner(job, CONTENDERS[job.contender].load(ort_qdq_plugin, job))
    run()
    print("ready", flush=True)
    sys.stdin.read()


def _proportional(job: Job, processes: int) -> int:
    """Bytes (PSS, proportional set size) of so many processes that have a session each, at the same time."""
    command = [sys.executable, "-m", _MODULE, "--hold", json.dumps(asdict(job))]
    held = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    try:
        for process in held:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("a process that was to hold a session has ended")
        return sum(_pss(process.pid) for process in held)
    finally:
        for process in held:
            process.communicate()


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))


def _latency(jobs: Sequence[Job]) -> list[float]:
    """Median seconds of one token of each job's session; they take turns in this process."""
    import ort_qdq_plugin

    runs = [runner(job, CONTENDERS[job.contender].load(ort_qdq_plugin, job)) for job in jobs]
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(_TOKENS):
        for run, own in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
    return [median(own) for own in times]


def _latency_ratio(plain: Job, shared: Job) -> float:
    """Seconds of one token with shared weights, by those without; in a fresh process."""
    command = [sys.executable, "-m", _MODULE, "--latency", json.dumps([asdict(plain), asdict(shared)])]
    seconds = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    return float(seconds[1] / seconds[0])


def _making(jobs: dict[str, Job], cache: Path) -> list[str]:
    """Fill the cache; what that took."""
    lines = []
    for way in ("cached", "shared"):
        made = interleave(CHILD, {way: jobs[way]}, 1, Measurement)[way]
        if made.failure:
            raise RuntimeError(made.failure)
        report = made.report
        stored = sum(path.stat().st_blocks * 512 for path in cache.rglob("*") if path.stat().st_nlink == 1)
        lines.append(
            f"First load for {CONTENDERS[way].title}: {made.init:.2f} s, cache: {report['cache']!r}, "
            f"{report['shared_bytes'] / MB:.0f} MB shared; the cache then has {stored / MB:.0f} MB of its own."
        )
    return lines


def _table(results: dict[str, Results[Measurement]]) -> list[str]:
    columns = ("load", "init s (min-max)", "outside ONNX Runtime ms", "peak MB", "then anonymous MB", "token ms")
    lines = [row(columns), row(["---"] * len(columns))]
    for way, result in results.items():
        if not result:
            lines.append(row([CONTENDERS[way].title, f"failed: {result.failure}"]))
            continue
        inits = [run.init_seconds for run in result.runs]
        own = f"{result.median(own_seconds) * 1e3:.0f}" if result.report else ""
        lines.append(
            row(
                [
                    CONTENDERS[way].title,
                    f"{result.init:.2f} ({min(inits):.2f}-{max(inits):.2f})",
                    own,
                    f"{result.peak / MB:.0f}",
                    f"{_anonymous(result) / MB:.0f}",
                    f"{result.token * 1e3:.1f}",
                ]
            )
        )
    return lines


def _anonymous(result: Results[Measurement]) -> float:
    return result.median(lambda run: run.after.anon)


def _section(args: argparse.Namespace, folder: Path) -> Section:
    spec = spec_of("uint4", layers=args.layers, accuracy_level=args.accuracy_level)
    pair = ensure_pair(spec, folder / f"uint4-{args.layers}")
    with tempfile.TemporaryDirectory(prefix="ort-qdq-cached-load-", dir=folder) as scratch:
        cache = Path(scratch) / "cache"
        jobs = {
            way: Job(
                way,
                str(pair.qdq if CONTENDERS[way].takes == "qdq" else pair.qop),
                threads=args.threads,
                accuracy_level=args.accuracy_level,
                output=str(Path(scratch) / f"{way}.npy"),
                cache_dir=str(cache),
            )
            for way in _WAYS
        }
        made = _making(jobs, cache)
        results = interleave(CHILD, jobs, args.runs, Measurement)
        lines = [
            f"{spec.layers} layers, {spec.weight_bytes / MB:.0f} MB of weights, accuracy level {spec.accuracy_level}.",
            "",
        ]
        lines += [*_table(results), "", *made]
        if not all(results.values()):
            return Section("From the cache", lines, [], [result.failure for result in results.values() if result.failure])
        say("several processes at once")
        one, many = (_proportional(jobs["shared"], count) for count in (1, args.processes))
        lines.append(f"PSS of one process with shared weights {one / MB:.0f} MB, of {args.processes} {many / MB:.0f} MB.")
        say("latency")
        ratio = _latency_ratio(jobs["cached"], jobs["shared"])
        outputs = {way: np.load(job.output) for way, job in jobs.items()}
    different = [way for way, output in outputs.items() if not np.array_equal(output, outputs["stock-qop"])]
    stock, cached, shared = (results[way] for way in ("stock-qop", "cached", "shared"))
    return Section(
        "From the cache",
        lines,
        [
            Target("from the cache, outside ONNX Runtime's session creation", cached.median(own_seconds) * 1e3, 50, "ms"),
            Target("from the cache, init / stock QOperator", cached.init / stock.init, 0.60),
            Target("from the cache, peak / stock QOperator", cached.peak / stock.peak, 0.90),
            Target("shared, anonymous memory / stock QOperator", _anonymous(shared) / _anonymous(stock), 0.05),
            Target(f"shared, PSS of {args.processes} processes / one", many / one, 1.3),
            Target("shared, token / without sharing", ratio, 1.03),
            Target("shared, weights mapped", shared.report["shared_bytes"], spec.weight_bytes, "B", at_least=True),
        ],
        [f"{way}: the output differs from stock's QOperator model" for way in different],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="of the decoder (default 32)")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes of each contender (default 5)")
    parser.add_argument("--processes", type=int, default=4, help="sessions at the same time (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op (default 2)")
    parser.add_argument("--accuracy-level", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="where the model is kept (default: a temporary folder)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    parser.add_argument("--hold", help=argparse.SUPPRESS)
    parser.add_argument("--latency", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.hold:
        _hold(Job(**json.loads(args.hold)))
        return 0
    if args.latency:
        print(json.dumps(_latency([Job(**job) for job in json.loads(args.latency)])))
        return 0
    with tempfile.TemporaryDirectory(prefix="ort-qdq-cached-load-") as temporary:
        folder = (args.dir or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        section = _section(args, folder)
    return finish("The cache", [section], args)


if __name__ == "__main__":
    sys.exit(main())
