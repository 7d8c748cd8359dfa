"""The cache under fire: many processes at once, processes that are killed, entries that are damaged.

    python -m conformance.cache [--processes 16] [--kills 200] [--corruptions 1000]
    python -m conformance.cache --quick

1. Processes that have imported everything load a model at once through an empty cache: one packs, the others map.
2. Processes are killed at random moments while they pack and commit. The next load must be right and leave nothing behind.
3. Entries are damaged at random. With verify="content" none is ever used; with "stat" none whose manifest, model, sizes or
   set of files was touched.

Exit status 1 if anything of this does not hold.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import NamedTuple

import onnx

from conformance.drawing.draft import stack
from conformance.sessions import CPU, digest_of
from conformance.worker import Worker, in_fresh_process
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.options import Verify

__all__ = ["leftovers"]

_SLOWDOWN = 1.3
_DAMAGES = ("flip", "truncate", "remove", "swap")


class _Loaded(NamedTuple):
    """What came of a load: what the report says of the cache, the result, and how long it took."""

    way: str
    digest: str
    seconds: float


def _write_model(folder: Path, seed: str, layers: int, width: int) -> Path:
    folder.mkdir(parents=True)
    path, model = folder / "model.onnx", stack(layers, width, seed)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=1024)
    return path


def _load(model: Path, cache: Path | None, verify: Verify = "stat") -> _Loaded:
    start = time.perf_counter()
    session = create_session(model, providers=CPU, options=Options(cache_dir=cache, verify=verify))
    seconds = time.perf_counter() - start
    report = report_of(session)
    assert report is not None
    return _Loaded(report.cache, digest_of(session), seconds)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix in (".tmp", ".old")]


def _at_once(model: Path, cache: Path, processes: int) -> list[_Loaded]:
    """What came of that many loads which start at the same time."""
    with ExitStack() as undo:
        workers = [undo.enter_context(closing(Worker())) for _ in range(processes)]
        # Has all that this module imports imported: so many interpreters that start would hide what the loads take.
        for work, *arguments in ((leftovers, cache.parent), (_load, model, cache)):
            for worker in workers:
                worker.send(work, *arguments)
            answers = [worker.answer() for worker in workers]
        return answers


def _many_at_once(folder: Path, processes: int, rounds: int, timed: bool) -> list[str]:
    model = _write_model(folder, "many", 48, 2048)
    wanted = in_fresh_process(_load, model, None).digest
    in_fresh_process(_load, model, folder / "first")  # has the model's files read
    alone = in_fresh_process(_load, model, folder / "filled").seconds
    problems, filled, empty = [], [], []
    for number in range(rounds):
        # Creating so many sessions shares the processors: what that takes is seen where nothing is left to pack.
        filled.append(max(loaded.seconds for loaded in _at_once(model, folder / "filled", processes)))
        outcomes = _at_once(model, folder / str(number), processes)
        empty.append(max(loaded.seconds for loaded in outcomes))
        ways = Counter(loaded.way for loaded in outcomes)
        if ways != Counter(made=1, used=processes - 1):
            problems.append(f"packed {ways['made']} times")
        if {loaded.digest for loaded in outcomes} != {wanted}:
            problems.append("wrong results")
    last, used = median(empty), median(filled)
    allowed = used + _SLOWDOWN * alone
    print(f"{processes} at once, {rounds} times: last ready after {last:.2f} s, allowed {allowed:.2f} s")
    print(f"with a filled cache after {used:.2f} s; one first load alone {alone:.2f} s")
    if timed and last > allowed:
        problems.append(f"the last was ready after {last:.2f} s")
    return problems


def _killed(folder: Path, kills: int) -> list[str]:
    model, cache = _write_model(folder, "killed", 24, 1024), folder / "cache"
    start = time.perf_counter()
    wanted = in_fresh_process(_load, model, None).digest
    whole = time.perf_counter() - start
    rng, problems, seen = random.Random(0), [], Counter[str]()
    for _ in range(kills):
        shutil.rmtree(cache, ignore_errors=True)
        with closing(Worker()) as worker:
            worker.send(_load, model, cache)
            time.sleep(rng.uniform(0.5, 1.1) * whole)
        left = "unfinished" if cache.is_dir() and leftovers(cache) else "nothing" if not cache.is_dir() else "whole or none"
        loaded = _load(model, cache)
        seen[f"{left}, then {loaded.way}"] += 1
        if loaded.digest != wanted:
            problems.append(f"wrong results after a kill that left {left}")
        if leftovers(cache):
            problems.append(f"left behind: {leftovers(cache)}")
    print(f"{kills} kills: {dict(seen)}")
    return problems


def _damage(rng: random.Random, entry: Path, other: Path) -> tuple[str, bool]:
    """Damage an entry; what was done, and whether it is seen without looking at the content of weights."""
    names = sorted(path.name for path in entry.iterdir() if path.name != "on-disk")
    name, how = rng.choice(names), rng.choice(_DAMAGES)
    path, twin = entry / name, other / name
    # A new file in its place: the old one may be mapped.
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "remove":
        return f"{how} {name}", True
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[rng.randrange(len(data)) :]
    else:
        data[:] = twin.read_bytes() if twin.exists() and twin.read_bytes() != data else b""
    path.write_bytes(data)
    path.chmod(0o400)
    is_weight = name.startswith("packed-")
    return f"{how} {name}", not is_weight or path.stat().st_size != twin.stat().st_size


def _corrupted(folder: Path, corruptions: int) -> list[str]:
    models = [_write_model(folder / seed, seed, 2, 128) for seed in ("one", "other")]
    rng, problems, seen = random.Random(1), [], Counter[str]()
    wanted = _load(models[0], None).digest
    for verify in ("content", "stat"):
        cache, entries = folder / verify, list[Path]()
        for model in models:
            _load(model, cache, verify)
            entries.append(next(path for path in cache.iterdir() if path.is_dir() and path not in entries))
        for _ in range(corruptions):
            what, visible = _damage(rng, *entries)
            way, digest, _ = _load(models[0], cache, verify)
            seen[f"{verify}: {way}"] += 1
            if way == "used" and (visible or verify == "content"):
                problems.append(f"used with verify={verify!r} after: {what}")
            if way == "made" and digest != wanted:
                problems.append(f"wrong results after: {what}")
            if way == "used":
                # Renamed first: something may still be written into it.
                entries[0].rename(folder / f"damaged-{verify}-{sum(seen.values())}")
                _load(models[0], cache, verify)
    print(f"{corruptions} corruptions each: {dict(seen)}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=16, help="loads at once (default 16)")
    parser.add_argument("--kills", type=int, default=200, help="processes to kill (default 200)")
    parser.add_argument("--corruptions", type=int, default=1000, help="damages for each way to verify (default 1000)")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    args = parser.parse_args()
    if args.quick:
        args.processes, args.kills, args.corruptions = 4, 5, 50
    problems = []
    with tempfile.TemporaryDirectory(prefix="ort-qdq-cache-") as name:
        folder = Path(name)
        problems += _many_at_once(folder / "many", args.processes, rounds=1 if args.quick else 3, timed=not args.quick)
        problems += _killed(folder / "killed", args.kills)
        problems += _corrupted(folder / "corrupted", args.corruptions)
    for problem in problems:
        print(f"FAIL: {problem}")
    print("all held" if not problems else f"{len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
