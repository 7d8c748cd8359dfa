"""The cache in use: users, processes and threads load models through one directory, while models are replaced and processes
are killed.

    python -m conformance.cache_soak [--minutes 15] [--processes 4] [--threads 8]

Loads differ in what is verified and shared; the directory has a limit that makes them remove each other's entries. Each
result must be that of stock ONNX Runtime for the file that was in place when the load began, or took its place before it
ended; no load may go to stock; and at the end, descriptors, unfinished entries, spill files and processes must be gone. As
root, processes belong to two other users in turns. Exit status 1 if anything of this does not hold.
"""

import argparse
import gc
import hashlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime as ort

from conformance.cache import leftovers
from conformance.drawing.draft import stack
from conformance.faults.scene import UNUSED_UID
from conformance.sessions import CPU, SILENT, digest_of, quiet_options
from conformance.worker import Crash, Worker
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.cache.write_back import wait_until_on_disk

__all__ = ["main"]

_VERSIONS = 5  # of each model
_ROUND_SECONDS, _REPLACE_SECONDS = 6.0, 0.25
_MAX_BYTES = 600_000  # of the cache: fewer than all entries have
_SHOWN = 20  # problems


class _Models(NamedTuple):
    """What is loaded: paths, each version's bytes, and what each must give."""

    paths: tuple[Path, ...]
    versions: tuple[tuple[bytes, ...], ...]  # of each path
    wanted: dict[str, str]  # digest of the model file -> digest of its result

    def may_be(self, path: Path, before: "_Look", after: "_Look") -> set[str]:
        """The results that a load may have given between two looks at the file.

        Other versions may have been there meanwhile, also if the bytes are the same again.
        """
        versions = map(_digest, self.versions[self.paths.index(path)])
        return {self.wanted[version] for version in ([before.digest] if before == after else versions)}

    def replace(self, slot: int, number: int) -> None:
        """Put another version in place, at once."""
        fresh = self.paths[slot].with_suffix(".fresh")
        fresh.write_bytes(self.versions[slot][number % _VERSIONS])
        fresh.replace(self.paths[slot])


class _Look(NamedTuple):
    """A file as it was at one moment."""

    inode: int
    changed_ns: int
    digest: str

    @classmethod
    def at(cls, path: Path) -> "_Look":
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            return cls(status.st_ino, status.st_mtime_ns, _digest(file.read()))


def _write_models(folder: Path) -> _Models:
    """Both layouts, with the weights inside and in a file of each version's own; the first version is in place."""
    paths, versions, wanted = [], [], {}
    for slot, (n_major, external) in enumerate([(False, False), (True, False), (False, True), (True, True)]):
        paths.append(folder / f"{slot}.onnx")
        made = []
        for version in range(_VERSIONS):
            model = stack(2, 256, f"soak {slot} {version}", n_major=n_major)
            # Padding: a version can be told from another by its size as well, or by nothing but content and time.
            model.doc_string = "." * (version // 2)
            onnx.save(model, paths[-1], save_as_external_data=external, location=f"{slot}.{version}.data")
            made.append(paths[-1].read_bytes())
            # Stock ONNX Runtime does not fuse N-major weights, and what is not fused rounds otherwise.
            create = create_session if n_major else ort.InferenceSession
            wanted[_digest(made[-1])] = digest_of(create(paths[-1], quiet_options(), providers=CPU))
        versions.append(tuple(made))
    for data in folder.glob("*.data"):
        data.chmod(0o644)
    models = _Models(tuple(paths), tuple(versions), wanted)
    for slot in range(len(paths)):
        models.replace(slot, 0)
    return models


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _become(uid: int) -> None:
    ort.set_default_logger_severity(SILENT)
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


class _Loads:
    """What one process's threads do, and what came of it."""

    def __init__(self, models: _Models, cache: Path, spill: Path, seconds: float) -> None:
        self.seen: Counter[str] = Counter()
        self.problems: list[str] = []
        self._models, self._cache, self._spill = models, cache, spill
        self._end = time.monotonic() + seconds

    def run(self, seed: int) -> None:
        """Load and run models until the time is over."""
        dice = random.Random(seed)
        while time.monotonic() < self._end:
            path = dice.choice(self._models.paths)
            options = Options(
                cache_dir=self._cache, cache_max_bytes=_MAX_BYTES, share_weights=dice.random() < 0.1,
                verify=dice.choice(["stat", "content"]), spill_dir=self._spill,
            )  # fmt: skip
            before = _Look.at(path)
            try:
                session = create_session(path, quiet_options(), CPU, options=options)
            except Exception as error:
                self.problems.append(f"{path.name}: {type(error).__name__}: {error}")
                continue
            found, report = digest_of(session), report_of(session)
            after = _Look.at(path)
            self.seen[report.cache or report.route if report else "nothing"] += 1
            if report is None or report.route == "stock":
                self.problems.append(f"{path.name}: {report and report.summary()}")
            elif found not in self._models.may_be(path, before, after):
                whose = [key for key, digest in self._models.wanted.items() if digest == found]
                self.problems.append(f"{path.name}: results of {whose} for {before}, then {after}, by {report.summary()}")


def _work(models: _Models, cache: Path, spill: Path, seconds: float, seeds: Sequence[int]) -> tuple[Counter[str], list[str]]:
    """Load in as many threads as there are seeds."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    loads = _Loads(models, cache, spill, seconds)
    with ThreadPoolExecutor(len(seeds)) as threads:
        list(threads.map(loads.run, seeds))
    wait_until_on_disk()
    gc.collect()
    if (left := len(os.listdir("/proc/self/fd")) - descriptors) > 0:
        loads.problems.append(f"{left} descriptors left")
    return loads.seen, loads.problems


def _soak(folder: Path, minutes: float, processes: int, threads: int) -> tuple[Counter[str], list[str]]:
    models, cache, spill = _write_models(folder), folder / "cache", folder / "spill"
    for directory in (cache, spill):
        directory.mkdir()
        directory.chmod(0o1777)
    users = (UNUSED_UID, UNUSED_UID - 1) if os.getuid() == 0 else (os.getuid(),)
    # The same one comes again only after all others: a load cannot be so slow.
    dice, numbers, seen = random.Random(0), [count(1) for _ in models.paths], Counter[str]()
    problems: list[str] = []
    end = time.monotonic() + 60 * minutes
    with ExitStack() as undo:
        workers = [Worker(partial(_become, users[number % len(users)])) for number in range(processes)]
        for worker in workers:
            undo.enter_context(closing(worker))
        while time.monotonic() < end and len(problems) < _SHOWN:
            for worker in workers:
                seeds = [dice.randrange(1 << 30) for _ in range(-(-threads // processes))]
                worker.send(_work, models, cache, spill, _ROUND_SECONDS, seeds)
            killed, over = dice.randrange(2 * processes), time.monotonic() + _ROUND_SECONDS
            at = time.monotonic() + dice.uniform(0, _ROUND_SECONDS)
            while (now := time.monotonic()) < over:
                slot = dice.randrange(len(models.paths))
                models.replace(slot, next(numbers[slot]))
                if killed < processes and now > at:
                    workers[killed].close()
                    seen["killed processes"], killed = seen["killed processes"] + 1, processes
                time.sleep(_REPLACE_SECONDS)
            for worker in workers:
                try:
                    if worker.is_alive():
                        more, found = worker.answer(20 * _ROUND_SECONDS)
                        seen, problems = seen + more, problems + found
                except Crash as crash:
                    problems.append(f"a process ended, or hung: {crash}")
            print(dict(seen), file=sys.stderr)
        # What killed processes left goes with the next load, or by pruning.
        for worker in workers[: len(users)]:
            worker.send(_work, models, cache, spill, 1.0, [0])
            _, found = worker.answer(20 * _ROUND_SECONDS)
            problems += found
    problems += [f"left: {name}" for name in leftovers(cache) + os.listdir(spill)]
    problems += [f"a process is left: {line}" for line in _processes_with(str(folder))]
    return seen, problems


def _processes_with(text: str) -> list[str]:
    """The command lines that have it, of other processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and path.parent.name != str(os.getpid()):
            lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, and say what came of it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="how long (default 15)")
    parser.add_argument("--processes", type=int, default=4, help="that load (default 4)")
    parser.add_argument("--threads", type=int, default=8, help="of all of them together (default 8)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ort-qdq-cache-soak-") as name:
        os.chmod(name, 0o755)
        seen, problems = _soak(Path(os.path.realpath(name)), args.minutes, args.processes, args.threads)
    print(f"loads: {dict(seen)}")
    for problem in problems[:_SHOWN]:
        print(f"FAIL: {problem}")
    print("all held" if not problems else f"{len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
