"""The table of the cache: later loads of a large model, and what several processes of it cost together.

    python -m benchmarks.cached_load [--layers 32] [--runs 5] [--processes 4] [--dir FOLDER] [--against PATH] [--check]

A first load fills the cache, once with and once without shared pre-packed weights. Then fresh processes take turns: the
QOperator model in stock ONNX Runtime, this package without a cache, from the cache, and from the cache with shared weights.
After that, some processes hold a session each at the same time, and one process compares the latency of both kinds.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.big_models import write_pair
from benchmarks.results import MB, MS, Results, command, own_seconds
from benchmarks.ways import jobs, measure, peers, title
from ort_qdq_plugin.cli.bench import Figure
from ort_qdq_plugin.cli.demo_model import PHI_3_MINI
from ort_qdq_plugin.cli.measure import Job, Peer, difference, measured, start

__all__ = ["holding", "main", "proportional"]

_OWN = Figure("outside ONNX Runtime ms", lambda run: own_seconds(run) * MS, 0)
_MAPPED = Figure("mapped weights MB", lambda run: run.facts.get("shared_bytes", 0) / MB, 0)
_TOKENS = 60  # of either session, for the latency


def proportional(begin: Callable[[], subprocess.Popen[bytes]], processes: int) -> int:
    """Bytes (PSS, proportional set size) of so many processes at the same time, each when it says that it is ready."""
    held = [begin() for _ in range(processes)]
    try:
        for process in held:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("a process that was to hold a session has ended")
        rollups = [Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines() for process in held]
        return sum(int(line.split()[1]) * 1024 for rollup in rollups for line in rollup if line.startswith("Pss:"))
    finally:
        for process in held:
            process.communicate()


def holding(job: Job) -> Callable[[], subprocess.Popen[bytes]]:
    """What begins a process that does a job, and holds its session."""
    return partial(start, job._replace(hold=True))


def _make(key: str, peer: Peer) -> str:
    """Fill a contender's cache, which is among its files then; what that took."""
    assert peer.job.options is not None
    run = measured(peer.job)
    entries = [path for path in Path(peer.job.options["cache_dir"]).rglob("*") if path.is_file()]
    peer.job = peer.job._replace(files=(*peer.job.files, *map(str, entries)))
    stored = sum(path.stat().st_blocks * 512 for path in entries)
    return (
        f"First load for {title(key)}: {run.init:.2f} s, {run.cpu:.2f} s of CPU, cache: {run.facts['cache']!r}, "
        f"{run.facts['shared_bytes'] / MB:.0f} MB shared; the cache then has {stored / MB:.0f} MB."
    )


def _measured(results: Results, args: argparse.Namespace, folder: Path) -> None:
    shape = PHI_3_MINI._replace(layers=args.layers)
    pair = write_pair(folder / f"uint4-{args.layers}", "uint4", shape, level=args.accuracy_level)
    results.say(f"{args.layers} layers, {pair.weight_bytes / MB:.0f} MB of weights, accuracy level {args.accuracy_level}.\n")
    with tempfile.TemporaryDirectory(prefix="ort-qdq-cached-load-", dir=folder) as scratch:
        common: dict[str, Any] = {"level": args.accuracy_level, "threads": args.threads, "runs": (1, 7, 8.0)}
        ways = ("stock-qop", "ours-qdq", "cached", "shared")
        contenders = peers(ways, jobs(scratch, pair.qdq, pair.qop, **common), scratch, args.against)
        for key, peer in contenders.items():
            if "cache_dir" in (peer.job.options or {}):
                results.say(_make(key, peer))
        measure(contenders, args.runs)
        cached, shared = contenders["cached"].job, contenders["shared"].job
        one, many = (proportional(holding(shared), count) for count in (1, args.processes))
        results.say(f"PSS of one process with shared weights {one / MB:.0f} MB, of {args.processes} {many / MB:.0f} MB.\n")
        both = measured(cached._replace(runs=(_TOKENS, _TOKENS, 0.0), beside=(shared.options or {},)))
        results.table(
            contenders, [_OWN, "init", "cpu", "faults", "peak", "loaded anonymous", "steady", "run cpu"],
            ["init", "cpu", "peak", "loaded anonymous"], ["stock-qop"], reference="stock-qop",
        )  # fmt: skip
        for key, peer in contenders.items():
            if difference(peer, contenders["stock-qop"]):
                results.error(f"{key}: the output differs from stock's QOperator model")
    results.target(contenders, _OWN, "cached", 50)
    results.target(contenders, "init", "cached", 0.60, by="stock-qop")
    results.target(contenders, "peak", "cached", 0.90, by="stock-qop")
    results.target(contenders, "loaded anonymous", "shared", 0.05, by="stock-qop")
    results.judge(f"shared, PSS of {args.processes} processes / one", many / one, 1.3)
    results.judge("shared, token / without sharing", both.beside[0] / both.steady, 1.03)
    results.target(contenders, _MAPPED, "shared", pair.weight_bytes / MB, at_least=True)


def main() -> int:
    parser, results = command("cached_load", __doc__, 5), Results("Loads from the cache")
    parser.add_argument("--layers", type=int, default=32, help="of the decoder (default 32)")
    parser.add_argument("--processes", type=int, default=4, help="sessions at the same time (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op (default 2)")
    parser.add_argument("--accuracy-level", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="where the model is kept (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-table-") as temporary:
        _measured(results, args, (args.dir or Path(temporary)).resolve())
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
