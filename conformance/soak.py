"""The soak: sessions that threads create, run and drop, over and over; nothing of them may stay.

    python -m conformance.soak [--cycles 1000] [--threads 8]

Small models of every way of loading, with options that all threads share and with their own, some sessions left to the
garbage collector in reference cycles. After every few cycles all sessions are dropped, and what the process has is looked
at: resident memory must stay within 5 % of what it was after the first 100 cycles; descriptors, threads, mappings of the
models' and packed files and the files themselves must be what they were. Exit status 1 where something is not. Stock ONNX
Runtime does the same in a process of its own, for comparison: what that leaves behind is shown, not judged.
"""

import argparse
import ctypes
import gc
import os
import random
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort

from conformance.drawing.draft import stack
from conformance.markdown import table
from conformance.sessions import CPU, SILENT, digest_of, quiet_options
from conformance.worker import in_fresh_process
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.options import Buffer
from ort_qdq_plugin.system.platform import host

_COLUMNS = ("cycles", "resident", "anonymous", "descriptors", "threads", "mappings", "of our files")
_WIDTH, _LAYERS = 256, 2
_WARM_UP, _ROUND = 100, 50  # cycles, in a long soak
_MOST_ALIVE = 3  # of one thread
_IN_CYCLES = 0.25  # of all sessions
# Without a global lock, what another thread made is let go by the next collection only, and what that held by the one after.
_COLLECTIONS = 5


_Sample = dict[str, Any]
"""What the process has when no session is alive: numbers, and the files in the soak's folder."""


class _Kind(NamedTuple):
    """A way of loading: a model, and whether its options have a provider added, which makes it go by path."""

    name: str
    model: str | bytes
    by_path: bool = False

    def options(self, threads: int) -> Any:
        options = quiet_options(threads)
        if self.by_path:
            options.add_provider(CPU[0], {})
        return options

    def create(self, options: Any, spill: Path | None, dice: random.Random) -> Any:
        """A session by this package with a folder for packed weights, or else by stock ONNX Runtime."""
        providers = None if self.by_path else CPU
        if spill is None:
            return ort.InferenceSession(self.model, options, providers=providers)
        buffer: Buffer = "file" if self.by_path else dice.choice(["auto", "file", "memory"])
        ours = Options(buffer=buffer, spill_dir=spill, threads=dice.randint(1, 2), strict=True)
        session = create_session(self.model, options, providers, options=ours)
        report = report_of(session)
        if report is None or report.route != ("by path" if self.by_path else "borrowed"):
            raise AssertionError(f"{self.name}: {report}")
        return session


def _sample(cycles: int, folder: Path) -> _Sample:
    """Look at this process, and at what lies in the folder."""
    for _ in range(_COLLECTIONS):
        gc.collect()
    # What threads have freed in turns is no longer in use, but stays in the allocator's arenas unless it is asked for.
    ctypes.CDLL(None).malloc_trim(0)
    sizes, mappings = host.sizes_of(), Path("/proc/self/maps").read_text().splitlines()
    return {
        "cycles": cycles,
        "resident": sizes["VmRSS"],
        "anonymous": sizes["RssAnon"],
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mappings": len(mappings),
        "of our files": sum(f" {folder}/" in line for line in mappings),
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


def _kinds(folder: Path) -> list[_Kind]:
    kinds = []
    for layout, n_major in (("K-major", False), ("N-major", True)):
        model = stack(_LAYERS, _WIDTH, f"soak {n_major}", n_major=n_major)
        kinds.append(_Kind(f"{layout}, bytes", bytes(model.SerializeToString())))
        for form in ("inline", "external"):
            path = folder / f"{layout}.{form}.onnx"
            outside = form == "external"
            onnx.save_model(model, path, save_as_external_data=outside, location=f"{layout}.data", size_threshold=0)
            kinds.append(_Kind(f"{layout}, {form}", str(path)))
        kinds.append(_Kind(f"{layout}, external, added provider", str(path), by_path=True))
    return kinds


def _work(shared: Mapping[_Kind, Any], wanted: Mapping[_Kind, str], spill: Path | None, seed: int, cycles: int) -> None:
    """Create, run and drop sessions, half of them with shared options; some live on for a while."""
    dice = random.Random(seed)
    alive: list[tuple[_Kind, Any]] = []
    for _ in range(cycles):
        kind = dice.choice(list(shared))
        options = shared[kind] if dice.random() < 0.5 else kind.options(dice.randint(1, 2))
        session = kind.create(options, spill, dice)
        if dice.random() < _IN_CYCLES:
            session.myself = [session]
        alive.append((kind, session))
        if len(alive) > _MOST_ALIVE:
            del alive[dice.randrange(len(alive))]
        for kind, session in alive:
            if digest_of(session) != wanted[kind]:
                raise AssertionError(f"{kind.name}: other results")


def _samples(cycles: int, threads: int, stock: bool) -> list[_Sample]:
    # Putting back an entry of shared options is worth a warning to ONNX Runtime.
    ort.set_default_logger_severity(SILENT)
    samples: list[_Sample] = []
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(threads) as executor:
        folder = Path(os.path.realpath(name))
        spill = None if stock else Path(tempfile.mkdtemp(dir=folder))
        shared = {kind: kind.options(2) for kind in _kinds(folder)}
        wanted = {kind: digest_of(kind.create(options, spill, random.Random(0))) for kind, options in shared.items()}
        # All of them: an executor starts threads only when the others are busy.
        barrier = threading.Barrier(threads)
        list(executor.map(lambda _: barrier.wait(), range(threads)))
        done = 0
        while done < cycles:
            several = min(_ROUND, max(threads, cycles // 3), cycles - done)
            shares = [several // threads + (number < several % threads) for number in range(threads)]
            list(executor.map(partial(_work, shared, wanted, spill), range(done, done + threads), shares))
            done += several
            samples.append(_sample(done, folder))
    return samples


def _problems(samples: Sequence[_Sample], tolerance: float) -> list[str]:
    """What is not as it was after the warm-up."""
    warm = min(_WARM_UP, samples[-1]["cycles"] // 2)
    base, *later = (sample for sample in samples if sample["cycles"] >= warm)
    problems = []
    for sample in later:
        behind, growth = f"after {sample['cycles']} cycles", sample["resident"] / base["resident"]
        if abs(growth - 1) > tolerance:
            problems.append(f"{behind}: resident memory is {growth:.3f} times as large")
        different = [what for what in ("descriptors", "threads", "files") if sample[what] != base[what]]
        problems += [f"{behind}: {what}: {sample[what]}, not {base[what]}" for what in different]
    return problems + [f"{sample['cycles']} cycles: files are still mapped" for sample in samples if sample["of our files"]]


def _cells(sample: _Sample) -> list[str]:
    return [f"{sample[name] / 1e6:.1f} MB" if name in ("resident", "anonymous") else str(sample[name]) for name in _COLUMNS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000, help="sessions to create, by all together (default 1000)")
    parser.add_argument("--threads", type=int, default=8, help="threads that create them (default 8)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="part by which memory may change (default 0.05)")
    parser.add_argument("--no-stock", action="store_true", help="without the comparison")
    args = parser.parse_args()
    # With more arenas the allocator keeps some per cent more of what threads have freed, stock or not, and never the same.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    failed = False
    for loader in ("ours",) if args.no_stock else ("ours", "stock"):
        samples = in_fresh_process(_samples, args.cycles, args.threads, loader == "stock")
        print("\n".join([f"## {loader}", "", *table(_COLUMNS, map(_cells, samples)), ""]))
        found = _problems(samples, args.tolerance)
        print("\n".join(f"- {problem}" for problem in found) if found else "- nothing stays behind", end="\n\n")
        failed |= loader == "ours" and bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
