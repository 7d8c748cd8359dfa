"""The soak: sessions that threads create, run and drop, over and over; nothing of them may stay.

    python -m conformance.soak [--cycles 1000] [--threads 8]

Small models of every way of loading, with options that all threads share and with their own, some sessions left to the
garbage collector in reference cycles. After every few cycles all sessions are dropped, and what the process has is looked
at: resident memory must stay within 5 % of what it was after the first 100 cycles; descriptors, threads, mappings of the
models' and packed files and the files themselves must be what they were. Exit status 1 where something is not. Stock ONNX
Runtime does the same in a process of its own, for comparison: what that leaves behind is shown, not judged.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.system.platform import host

__all__ = ["main"]

_CPU = ["CPUExecutionProvider"]
_WIDTH, _LAYERS, _ROWS = 256, 2, 3
_WARM_UP, _ROUND = 100, 50  # cycles, in a long soak
_MOST_ALIVE = 3  # of one thread
_IN_CYCLES = 0.25  # of all sessions
# Without a global lock, what another thread made is let go by the next collection only, and what that held by the one after.
_COLLECTIONS = 5
_SILENT = 4  # OrtLoggingLevel


@dataclass(frozen=True)
class Kind:
    """A way of loading: a model, and whether its options have a provider added, which makes it go by path."""

    name: str
    model: str | bytes
    route: str
    added_provider: bool = False


@dataclass(frozen=True)
class Sample:
    """What the process has when no session is alive."""

    cycles: int
    resident: int
    anonymous: int  # of which
    descriptors: int
    threads: int
    mappings: int
    own_mappings: int  # of files of the soak's folder
    files: tuple[str, ...]

    @staticmethod
    def take(cycles: int, folder: Path) -> Sample:
        """Look at this process, and at what lies in the folder."""
        for _ in range(_COLLECTIONS):
            gc.collect()
        _give_back_free_memory()
        sizes = host.sizes_of()
        mappings = Path("/proc/self/maps").read_text().splitlines()
        return Sample(
            cycles,
            sizes["VmRSS"],
            sizes["RssAnon"],
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            len(mappings),
            sum(f" {folder}/" in line for line in mappings),
            tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))),
        )


def _give_back_free_memory() -> None:
    """What threads have freed in turns is no longer in use, but stays in the allocator's arenas unless it is asked for."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _chain(n_major: bool) -> onnx.ModelProto:
    """Square products one behind the other."""
    draft = Draft(f"soak {n_major}")
    value = draft.input("x", ["m", _WIDTH])
    for layer in range(_LAYERS):
        weight = draft.weight(Weight(k=_WIDTH, n=_WIDTH, n_major=n_major), f"w{layer}")
        if n_major:
            weight = draft.node("Transpose", [weight], f"t{layer}", perm=[1, 0])
        product = draft.node("MatMul", [value, weight], f"p{layer}")
        value = draft.node("Tanh", [product], "y" if layer == _LAYERS - 1 else f"h{layer}")
    draft.output("y", ["m", _WIDTH])
    return draft.model()


def _kinds(folder: Path) -> list[Kind]:
    kinds = []
    for layout, n_major in (("K-major", False), ("N-major", True)):
        model = _chain(n_major)
        data = bytes(model.SerializeToString())
        inline, external = folder / f"{layout}.inline.onnx", folder / f"{layout}.onnx"
        inline.write_bytes(data)
        onnx.save_model(model, external, save_as_external_data=True, location=f"{layout}.data", size_threshold=0)
        kinds += [
            Kind(f"{layout}, bytes", data, "borrowed"),
            Kind(f"{layout}, inline", str(inline), "borrowed"),
            Kind(f"{layout}, external", str(external), "borrowed"),
            Kind(f"{layout}, external, added provider", str(external), "by path", added_provider=True),
        ]
    return kinds


def _session_options(kind: Kind, inner_threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = inner_threads
    if kind.added_provider:
        options.add_provider(_CPU[0], {})
    return options


class _Soak:
    """Sessions of all kinds, created by `create`, for threads that take one after another."""

    def __init__(self, folder: Path, stock: bool) -> None:
        self._spill_dir = folder / "spill"
        self._spill_dir.mkdir()
        self._stock = stock
        self._kinds = _kinds(folder)
        self._shared = {kind.name: _session_options(kind, 2) for kind in self._kinds}
        self._x = np.random.default_rng(0).standard_normal((_ROWS, _WIDTH), dtype=np.float32)
        self._wanted = {kind.name: self._result(self._create(kind, random.Random(0))) for kind in self._kinds}

    def work(self, seed: int, cycles: int) -> None:
        """Create, run and drop so many sessions; some live on for a while."""
        dice = random.Random(seed)
        alive: list[tuple[Kind, Any]] = []
        for _ in range(cycles):
            kind = dice.choice(self._kinds)
            session = self._create(kind, dice)
            if dice.random() < _IN_CYCLES:
                session.myself = [session]
            alive.append((kind, session))
            if len(alive) > _MOST_ALIVE:
                del alive[dice.randrange(len(alive))]
            for kind, session in alive:
                np.testing.assert_array_equal(self._result(session), self._wanted[kind.name])

    def _create(self, kind: Kind, dice: random.Random) -> Any:
        options = self._shared[kind.name] if dice.random() < 0.5 else _session_options(kind, dice.randint(1, 2))
        providers = None if kind.added_provider else _CPU
        if self._stock:
            return ort.InferenceSession(kind.model, options, providers=providers)
        wishes = Options(
            buffer="file" if kind.added_provider else dice.choice(["auto", "file", "memory"]),
            spill_dir=self._spill_dir,
            threads=dice.randint(1, 2),
            strict=True,
        )
        session = create_session(kind.model, options, providers, options=wishes)
        report = report_of(session)
        if report is None or report.route != kind.route:
            raise AssertionError(f"{kind.name}: {report}")
        return session

    def _result(self, session: Any) -> NDArray[np.float32]:
        result: NDArray[np.float32] = session.run(None, {"x": self._x})[0]
        return result


def _samples(cycles: int, threads: int, stock: bool) -> Iterator[Sample]:
    """Run the soak in this process, with a look at it after every round."""
    # Putting back an entry of shared options is worth a warning to ONNX Runtime.
    ort.set_default_logger_severity(_SILENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        soak = _Soak(folder, stock)
        with ThreadPoolExecutor(threads) as executor:
            # All of them: an executor starts threads only when the others are busy.
            barrier = threading.Barrier(threads)
            list(executor.map(lambda _: barrier.wait(), range(threads)))
            done = 0
            while done < cycles:
                several = min(_ROUND, max(threads, cycles // 3), cycles - done)
                shares = [several // threads + (number < several % threads) for number in range(threads)]
                list(executor.map(soak.work, range(done, done + threads), shares))
                done += several
                yield Sample.take(done, folder)


def _problems(samples: Sequence[Sample], tolerance: float) -> list[str]:
    """What is not as it was after the warm-up."""
    base = next(sample for sample in samples if sample.cycles >= min(_WARM_UP, samples[-1].cycles // 2))
    problems = []
    for sample in samples[samples.index(base) + 1 :]:
        behind = f"after {sample.cycles} cycles"
        if abs(sample.resident / base.resident - 1) > tolerance:
            problems.append(f"{behind}: resident memory is {sample.resident / base.resident:.3f} times as large")
        for what in ("descriptors", "threads", "files"):
            if getattr(sample, what) != getattr(base, what):
                problems.append(f"{behind}: {what}: {getattr(sample, what)}, not {getattr(base, what)}")
    problems += [f"after {sample.cycles} cycles: files are still mapped" for sample in samples if sample.own_mappings]
    return problems


def _table(samples: Sequence[Sample]) -> Iterator[str]:
    yield "| cycles | resident | anonymous | descriptors | threads | mappings | of our files |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for sample in samples:
        yield (
            f"| {sample.cycles} | {sample.resident / 1e6:.1f} MB | {sample.anonymous / 1e6:.1f} MB | {sample.descriptors} "
            f"| {sample.threads} | {sample.mappings} | {sample.own_mappings} |"
        )


def _in_fresh_process(args: argparse.Namespace, loader: str) -> list[Sample]:
    command = [sys.executable, "-m", "conformance.soak", "--child", loader]
    command += ["--cycles", str(args.cycles), "--threads", str(args.threads)]
    # With more arenas the allocator keeps some per cent more of what threads have freed, stock or not, and never the same.
    environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    samples: list[Mapping[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    return [Sample(**{**sample, "files": tuple(sample["files"])}) for sample in samples]


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, print, and judge; 1 where something stays behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--cycles", type=int, default=1000, help="sessions to create, by all threads together (default 1000)"
    )
    parser.add_argument("--threads", type=int, default=8, help="threads that create them (default 8)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="part by which memory may change (default 0.05)")
    parser.add_argument("--no-stock", action="store_true", help="without the comparison")
    parser.add_argument("--child", choices=["ours", "stock"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        for sample in _samples(args.cycles, args.threads, args.child == "stock"):
            print(json.dumps(asdict(sample)), flush=True)
        return 0
    failed = False
    for loader in ("ours",) if args.no_stock else ("ours", "stock"):
        samples = _in_fresh_process(args, loader)
        print("\n".join([f"## {loader}", "", *_table(samples), ""]))
        found = _problems(samples, args.tolerance)
        print("\n".join(f"- {problem}" for problem in found) if found else "- nothing stays behind", end="\n\n")
        failed |= loader == "ours" and bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
