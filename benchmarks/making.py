"""What making a shared entry of the cache takes: time, the memory of all processes together, and disk.

    python -m benchmarks.making [--layers 32] [--runs 3] [--dir FOLDER] [--against PATH] [--limit 0.5]

Each run is a fresh process that loads a model through an empty cache with shared weights. It is watched together with the
processes that it starts. At last, as root, it is tried once in a control group that is allowed `--limit` times the bytes of
the model's weights, page cache included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.big_models import write_pair
from benchmarks.results import MB, Results, command
from benchmarks.ways import HERE, Checkout
from conformance.faults.limits import MEMORY_LIMITS, control_group
from conformance.markdown import table
from ort_qdq_plugin.cache.entry import MANIFEST
from ort_qdq_plugin.cli.demo_model import PHI_3_MINI
from ort_qdq_plugin.cli.machine import make_ready
from ort_qdq_plugin.system.platform import host

__all__ = ["main"]

_SAMPLE_SECONDS = 0.05
_SECONDS = 600  # of a try in little memory
_BLOCK_BYTES = 512  # the unit of st_blocks

_MAKE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import onnxruntime
from ort_qdq_plugin import Options, create_session, report_of
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
began = time.perf_counter()
session = create_session(
    sys.argv[2], options, ["CPUExecutionProvider"], options=Options(cache_dir=sys.argv[3], share_weights=True, strict=True)
)
seconds = time.perf_counter() - began
report = report_of(session)
assert report.cache == "made" and report.shared_bytes, report
print(seconds, report.seconds["share"])
"""


class _Making(NamedTuple):
    """What one process took."""

    seconds: float
    share: float  # seconds of them in which the entry got its pre-packed weights
    cpu: float  # CPU seconds of all processes
    anonymous: int  # the most bytes of all processes at one time
    making: int  # bytes, file-backed ones too, until the entry was there: at most the sum of what each process has
    disk: int  # the most bytes of the cache's directory at one time
    entry: int  # its bytes at the end


def _tree(pid: int) -> list[int]:
    """A process and those that it has started."""
    found = [pid]
    for process in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{process}/task"):
                found += map(int, Path(f"/proc/{process}/task/{task}/children").read_text("ascii").split())
    return found


def _contents(folder: Path) -> tuple[int, bool]:
    """How many bytes a directory of entries has on the disk, and whether an entry is complete."""
    total, complete = 0, False
    for inner, _, names in os.walk(folder):
        complete |= MANIFEST in names and not inner.endswith(".tmp")
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(inner, name)).st_blocks * _BLOCK_BYTES
    return total, complete


def _made(checkout: Checkout, model: Path, folder: Path, group: Path | None = None, timeout: float | None = None) -> _Making:
    """Make the entry in a fresh process, in a control group if one is given.

    Raises:
        RuntimeError: It failed, with the end of its messages.
    """
    anonymous = making = disk = 0
    arguments = [sys.executable, "-c", _MAKE, str(checkout.folder), str(model), str(folder)]
    if group is not None:
        arguments = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *arguments]
    end = time.monotonic() + (timeout or float("inf"))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as messages:
        # In its own folder: older helper processes import what lies in the current one.
        process = subprocess.Popen(arguments, cwd=checkout.folder, stdout=out, stderr=messages)
        ended = 0
        while not ended:
            sizes = [host.sizes_of(pid) for pid in _tree(process.pid)]
            anonymous = max(anonymous, sum(each.get("RssAnon", 0) for each in sizes))
            nbytes, is_complete = _contents(folder)
            disk = max(disk, nbytes)
            if not is_complete:
                making = max(making, sum(each.get("VmRSS", 0) for each in sizes))
            time.sleep(_SAMPLE_SECONDS)
            if time.monotonic() > end:
                process.kill()
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), messages.seek(0)
        if process.returncode:
            lines = messages.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f"exit status {process.returncode}")
        seconds, share = map(float, out.read().split())
    return _Making(seconds, share, usage.ru_utime + usage.ru_stime, anonymous, making, disk, _contents(folder)[0])


def _fresh(checkout: Checkout, model: Path, folder: Path) -> _Making:
    files = [str(model), f"{model}.data"]
    make_ready(sum(os.stat(file).st_size for file in files), files)
    with tempfile.TemporaryDirectory(prefix="ort-qdq-making-", dir=folder) as cache:
        return _made(checkout, model, Path(cache))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if something is wrong."""
    parser, results = command("making", __doc__, 3), Results("Making a shared entry")
    parser.add_argument("--layers", type=int, default=32, help="of the decoder (default 32)")
    parser.add_argument("--limit", type=float, default=0.5, help="of memory, in times the weights' bytes (default 0.5)")
    parser.add_argument("--dir", type=Path, help="where the model is kept (default: a temporary folder)")
    args = parser.parse_args(argv)
    with ExitStack() as kept:
        folder = args.dir.resolve() if args.dir else Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="making-")))
        _measured(results, args, folder)
    return results.finish(args)


def _measured(results: Results, args: argparse.Namespace, folder: Path) -> None:
    pair = write_pair(folder / f"uint4-{args.layers}", "uint4", PHI_3_MINI._replace(layers=args.layers), level=4)
    results.say(f"{args.layers} layers, {pair.weight_bytes / MB:.0f} MB of weights, accuracy level 4.\n")
    made: dict[Checkout, list[_Making]] = {checkout: [] for checkout in (HERE, *args.against)}
    for _ in range(args.runs):
        for checkout, runs in made.items():
            runs.append(_fresh(checkout, pair.qdq, folder))
            print(checkout.label or "this checkout", runs[-1], file=sys.stderr, flush=True)
    medians = {checkout: _Making(*map(median, zip(*runs, strict=True))) for checkout, runs in made.items()}
    rows = [
        [checkout.label or "this checkout", f"{one.seconds:.2f}", f"{one.share:.2f}", f"{one.cpu:.2f}",
         *(f"{nbytes / MB:.0f}" for nbytes in one[3:])]
        for checkout, one in medians.items()
    ]  # fmt: skip
    columns = [
        "of",
        "seconds",
        "of them sharing",
        "CPU seconds",
        "anonymous MB",
        "all MB while making",
        "disk MB",
        "entry MB",
    ]
    results.say("\n".join(table(columns, rows)) + "\n")
    ours = medians[HERE]
    for checkout in args.against:
        theirs = medians[checkout]
        results.judge(f"time / {checkout.label}", ours.seconds / theirs.seconds, 0.45)
        results.judge(f"CPU / {checkout.label}", ours.cpu / theirs.cpu, 1)
        results.judge(f"anonymous / {checkout.label}", ours.anonymous / theirs.anonymous, 0.35)
        results.judge(f"all memory while making / {checkout.label}", ours.making / theirs.making, 0.35)
    results.judge("disk / entry", ours.disk / ours.entry, 1.1)
    if os.geteuid() == 0:
        results.say(_in_little(pair.qdq, int(args.limit * pair.weight_bytes), folder))


def _in_little(model: Path, nbytes: int, folder: Path) -> str:
    """Make it where all processes together may have so many bytes."""
    with control_group("memory", MEMORY_LIMITS) as limit, tempfile.TemporaryDirectory(dir=folder) as cache:
        limit.write_text(str(nbytes))
        try:
            made = _made(HERE, model, Path(cache), limit.parent, _SECONDS)
        except RuntimeError as problem:
            return f"- FAIL: in {nbytes / MB:.0f} MB of memory: {problem}\n"
    return f"- PASS: in {nbytes / MB:.0f} MB of memory, in {made.seconds:.0f} s\n"


if __name__ == "__main__":
    sys.exit(main())
