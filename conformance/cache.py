"""The cache under fire: many processes at once, processes that are killed, entries that are damaged.

    python -m conformance.cache [--processes 16] [--kills 200] [--corruptions 1000]
    python -m conformance.cache --quick

1. So many processes, all that they import done, load a model at once through an empty cache: one packs, the others map.
2. Processes are killed at random moments while they pack and commit. The next load must be right and leave nothing behind.
3. Entries are damaged at random. With verify="content" none is ever used; with "stat" none whose manifest, model, sizes or
   set of files was touched.

Exit status 1 if anything of this does not hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin.options import Verify

__all__ = ["main"]

_MODULE = "conformance.cache"
_SLOWDOWN = 1.3
_DAMAGES = ("flip", "truncate", "remove", "swap")


def _write_model(folder: Path, seed: str, layers: int, width: int) -> Path:
    folder.mkdir(parents=True)
    draft = Draft(seed)
    value = draft.input("x", [ROWS, width])
    for layer in range(layers):
        value = draft.node("Tanh", [draft.node("MatMul", [value, draft.weight(Weight(k=width, n=width), f"w{layer}")])])
    draft.node("Identity", [value], "y")
    draft.output("y", [ROWS, width])
    path = folder / "model.onnx"
    onnx.save(draft.model(), path, save_as_external_data=True, location="model.data", size_threshold=1024)
    return path


def _load(model: str, cache: str, verify: Verify, wait: bool = False) -> tuple[str, str, float]:
    """Load and run: (report.cache, digest of the result, seconds of the load)."""
    from ort_qdq_plugin import Options, create_session, report_of

    if wait:
        print("ready", flush=True)
        sys.stdin.read()
    start = time.perf_counter()
    options = Options(cache_dir=cache or None, verify=verify)
    session = create_session(model, providers=["CPUExecutionProvider"], options=options)
    seconds = time.perf_counter() - start
    report = report_of(session)
    assert report is not None
    x = np.random.default_rng(0).standard_normal((3, session.get_inputs()[0].shape[1])).astype(np.float32)
    digest = hashlib.sha256(session.run(None, {"x": x})[0].tobytes()).hexdigest()
    return report.cache, digest, seconds


def _start(model: Path, cache: Path | None, *, wait: bool = False) -> subprocess.Popen[str]:
    """A process that loads the model; with `wait`, once its input ends."""
    job = json.dumps([str(model), "" if cache is None else str(cache), "stat", wait])
    command = [sys.executable, "-m", _MODULE, "--child", job]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ended(process: subprocess.Popen[str]) -> Any:
    out = process.communicate(timeout=600)[0]
    if process.returncode:
        raise RuntimeError(f"a load ended with exit code {process.returncode}")
    return json.loads(out.splitlines()[-1])


def _leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix in (".tmp", ".old")]


def _at_once(model: Path, cache: Path, processes: int) -> list[Any]:
    """What came of so many loads that start at the same time."""
    # That many interpreters starting and importing at the same time would hide what the loads take.
    started = [_start(model, cache, wait=True) for _ in range(processes)]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    return [_ended(process) for process in started]


def _many_at_once(folder: Path, processes: int, rounds: int, timed: bool) -> list[str]:
    model = _write_model(folder, "many", 48, 2048)
    wanted = _ended(_start(model, None))[1]
    _ended(_start(model, folder / "first"))  # has the model's files read
    *_, alone = _ended(_start(model, folder / "filled"))
    problems, filled, empty = [], [], []
    for number in range(rounds):
        # Creating so many sessions shares the processors: what that takes is seen where nothing is left to pack.
        filled.append(max(seconds for *_, seconds in _at_once(model, folder / "filled", processes)))
        outcomes = _at_once(model, folder / str(number), processes)
        empty.append(max(seconds for *_, seconds in outcomes))
        ways = Counter(way for way, *_ in outcomes)
        if ways != Counter(made=1, used=processes - 1):
            problems.append(f"packed {ways['made']} times")
        if {digest for _, digest, *_ in outcomes} != {wanted}:
            problems.append("wrong results")
    last, allowed = median(empty), median(filled) + _SLOWDOWN * alone
    print(
        f"{processes} at once, {rounds} times: last ready after {last:.2f} s; after {median(filled):.2f} s with a filled "
        f"cache; one first load alone {alone:.2f} s; allowed {allowed:.2f} s"
    )
    if timed and last > allowed:
        problems.append(f"the last was ready after {last:.2f} s")
    return problems


def _killed(folder: Path, kills: int) -> list[str]:
    model, cache = _write_model(folder, "killed", 24, 1024), folder / "cache"
    start = time.perf_counter()
    wanted = _ended(_start(model, None))[1]
    whole = time.perf_counter() - start
    rng, problems = random.Random(0), []
    seen: Counter[str] = Counter()
    for _ in range(kills):
        shutil.rmtree(cache, ignore_errors=True)
        process = _start(model, cache)
        time.sleep(rng.uniform(0.5, 1.1) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left = "unfinished" if cache.is_dir() and _leftovers(cache) else "nothing" if not cache.is_dir() else "whole or none"
        way, digest, *_ = _load(str(model), str(cache), "stat")
        seen[f"{left}, then {way}"] += 1
        if digest != wanted:
            problems.append(f"wrong results after a kill that left {left}")
        if _leftovers(cache):
            problems.append(f"left behind: {_leftovers(cache)}")
    print(f"{kills} kills: {dict(seen)}")
    return problems


def _damage(rng: random.Random, entry: Path, other: Path) -> tuple[str, bool]:
    """Damage an entry; what was done, and whether it is seen without looking at the content of weights."""
    names = sorted(path.name for path in entry.iterdir() if path.name != "on-disk")
    name, how = rng.choice(names), rng.choice(_DAMAGES)
    path, twin = entry / name, other / name
    # A new file in its place: a link of the model's own file is not to be written to.
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "remove":
        return f"{how} {name}", True
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[rng.randrange(len(data)) :]
    elif twin.exists() and twin.read_bytes() != data:
        data = bytearray(twin.read_bytes())
    else:
        del data[:]
    path.write_bytes(data)
    path.chmod(0o400)
    is_weight = name.startswith("packed-")
    return f"{how} {name}", not is_weight or path.stat().st_size != twin.stat().st_size


def _corrupted(folder: Path, corruptions: int) -> list[str]:
    models = [_write_model(folder / seed, seed, 2, 128) for seed in ("one", "other")]
    rng, problems = random.Random(1), []
    seen: Counter[str] = Counter()
    wanted = _load(str(models[0]), "", "stat")[1]
    for verify in ("content", "stat"):
        cache = folder / verify
        entries = []
        for model in models:
            _load(str(model), str(cache), verify)
            entries.append(next(path for path in cache.iterdir() if path.is_dir() and path not in entries))
        for _ in range(corruptions):
            what, visible = _damage(rng, *entries)
            way, digest, *_ = _load(str(models[0]), str(cache), verify)
            seen[f"{verify}: {way}"] += 1
            if way == "used" and (visible or verify == "content"):
                problems.append(f"used with verify={verify!r} after: {what}")
            if way == "made" and digest != wanted:
                problems.append(f"wrong results after: {what}")
            if way == "used":
                # Renamed first: something may still be written into it.
                entries[0].rename(folder / f"damaged-{verify}-{sum(seen.values())}")
                _load(str(models[0]), str(cache), verify)
    print(f"{corruptions} corruptions each: {dict(seen)}")
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Do all three; the exit status."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description="The cache under fire.")
    parser.add_argument("--processes", type=int, default=16, help="loads at once (default 16)")
    parser.add_argument("--kills", type=int, default=200, help="processes to kill (default 200)")
    parser.add_argument("--corruptions", type=int, default=1000, help="damages for each way to verify (default 1000)")
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(json.dumps(_load(*json.loads(args.child))))
        return 0
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
