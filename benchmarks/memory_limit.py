"""The smallest memory limit, as of a container, in which a model of some 0.9 GB loads and runs. Needs root.

    python -m benchmarks.memory_limit [--layers 11] [--step 50] [--dir FOLDER] [--against PATH]

Each way of loading is tried in a control group of its own, whose limit is halved and doubled until it is known to `--step`
MB. The page cache counts there: every try begins without the model's pages. A try that ends late is one that failed, for the
system then reads the same pages again and again.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.big_models import write_pair
from benchmarks.results import MB, Results, command
from benchmarks.ways import WAYS, jobs, peers, title
from conformance.faults.limits import MEMORY_LIMITS, control_group
from conformance.markdown import table
from ort_qdq_plugin.cli.demo_model import PHI_3_MINI
from ort_qdq_plugin.cli.measure import Job, measured

__all__ = ["main"]

_WAYS = ["stock-qdq", "stock-qop", "ours-qdq", "cached", "shared"]
_SECONDS = 120  # of a try
_MOST = 4000  # MB


def _fits(job: Job, megabytes: int, files: Sequence[Path]) -> bool:
    """Whether the job can be done within this limit."""
    for path in files:
        with path.open("rb") as file:
            if sys.platform == "linux":  # which alone has such limits
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with control_group("memory", MEMORY_LIMITS) as limit:
        limit.write_text(str(int(megabytes * MB)))
        try:
            measured(job, limit.parent, _SECONDS)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
    return True


def _smallest(job: Job, step: int, files: Sequence[Path]) -> int | None:
    """The smallest multiple of `step` MB in which the job can be done; None if it cannot be done at all."""
    low, high = 0, _MOST // step
    if not _fits(job, high * step, files):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(job, middle * step, files) else (middle, high)
    return high * step


def main(argv: Sequence[str] | None = None) -> int:
    """Find the limits; 1 if something is wrong."""
    parser, results = command("memory_limit", __doc__, 1), Results("The smallest memory limit")
    parser.add_argument("--layers", type=int, default=11, help="of the decoder (default 11)")
    parser.add_argument("--step", type=int, default=50, help="MB to which a limit is found (default 50)")
    parser.add_argument("--contenders", nargs="+", default=_WAYS, choices=list(WAYS), metavar="WAY")
    parser.add_argument("--dir", type=Path, help="where the model is kept (default: a temporary folder)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="memory-limit-") as temporary:
        folder = (args.dir or Path(temporary)).resolve()
        pair = write_pair(folder / f"uint4-{args.layers}", "uint4", PHI_3_MINI._replace(layers=args.layers))
        with tempfile.TemporaryDirectory(prefix="ort-qdq-limit-", dir=folder) as scratch:
            contenders = peers(args.contenders, jobs(scratch, pair.qdq, pair.qop, threads=2), scratch, args.against)
            rows = []
            for key, peer in contenders.items():
                cache = (peer.job.options or {}).get("cache_dir")
                if cache:
                    measured(peer.job)
                files = [Path(file) for file in peer.job.files]
                files += [path for path in Path(cache).rglob("*") if path.is_file()] if cache else []
                found = _smallest(peer.job, args.step, files)
                rows.append([title(key), "none" if found is None else str(found)])
                print(*rows[-1], file=sys.stderr)
        results.say(f"{args.layers} layers, {pair.weight_bytes / MB:.0f} MB of weights; loaded and run once.\n")
        results.say("\n".join(table(["load", "smallest limit, MB"], rows)) + "\n")
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
