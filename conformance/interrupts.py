"""Loads that a signal interrupts at random moments: nothing of them may stay, and the next load must be right.

    python -m conformance.interrupts [--interrupts 3000]

Every way of loading gets its share. After each hundred, what this process has is looked at: descriptors, threads, children,
mappings of the model's and packed files, spill files, unfinished entries, and the entries of shared options. Exit status 1
where something is left, hung or other than it was.
"""

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort

from conformance.cache import leftovers
from conformance.drawing.draft import stack
from conformance.markdown import table
from conformance.sessions import CPU, SILENT, digest_of, quiet_options
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cache.write_back import wait_until_on_disk

__all__ = ["main"]

_HUNDRED = 100
_SETTLE_SECONDS, _HANG_SECONDS = 10.0, 60
_KEYS = ("session.model_external_initializers_file_folder_path", "session.prepack.enable_parallel")
_COLUMNS = ("way", "interrupts", "interrupted", "problems")


class _Way(NamedTuple):
    """Options of this package, whether the session's options are shared and go by path, and what is done before a load."""

    options: Mapping[str, Any]
    by_path: bool = False
    before: Callable[[Path], object] = lambda cache: None


def _emptied(cache: Path) -> None:
    for path in sorted(cache.rglob("*"), reverse=True):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


WAYS = {
    "memory": _Way({"buffer": "memory"}),
    "spill file": _Way({"buffer": "file"}),
    "by path": _Way({}, by_path=True),
    "cache, empty": _Way({"cached": True}, before=_emptied),
    "cache, filled": _Way({"cached": True, "verify": "content"}),
    "shared weights": _Way({"cached": True, "share_weights": True}),
}


class _Loads:
    """Loads of one model in one way."""

    def __init__(self, way: _Way, folder: Path) -> None:
        self._way, self._folder, self._cache, self.spill = way, folder, folder / "cache", folder / "spill"
        for path in (self._cache, self.spill):
            path.mkdir()
        self._model = folder / "model.onnx"
        onnx.save(stack(2, 512, "interrupts"), self._model, save_as_external_data=True, location="model.data")
        options = dict(way.options)
        cache = self._cache if options.pop("cached", False) else None
        self._options = Options(spill_dir=self.spill, threads=2, cache_dir=cache, **options)
        self._session_options = quiet_options()
        if way.by_path:
            self._session_options.add_provider(CPU[0], {})
        self.wanted = self.digest()
        wait_until_on_disk()
        way.before(self._cache)
        start = time.perf_counter()
        self._load()
        self._seconds = time.perf_counter() - start  # without what is imported
        wait_until_on_disk()

    def _load(self) -> Any:
        providers = None if self._way.by_path else CPU
        return create_session(self._model, self._session_options, providers, options=self._options)

    def digest(self) -> str:
        """What a load that nothing interrupts gives."""
        return digest_of(self._load())

    def interrupted(self, dice: random.Random) -> bool:
        """One load with an interrupt; whether it came before the end."""
        self._way.before(self._cache)
        with suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, max(1e-4, dice.random() * 1.2 * self._seconds))
            try:
                self._load()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            return False
        return True

    def left(self) -> dict[str, object]:
        """What this process has, once nothing refers to a session any more."""
        gc.collect()
        mappings = Path("/proc/self/maps").read_text().splitlines()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
            "mappings": sum(f" {self._folder}/" in line for line in mappings),
            "spill files": os.listdir(self.spill),
            "options": [_entry(self._session_options, key) for key in _KEYS],
        }


def _entry(options: Any, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return ""


def _settled(loads: _Loads, before: Mapping[str, object]) -> list[str]:
    """What is not as before, although it had time to end."""
    end = time.monotonic() + _SETTLE_SECONDS
    while (now := loads.left()) != before and time.monotonic() < end:
        time.sleep(0.05)
    return [f"{what}: {now[what]}, not {value}" for what, value in before.items() if now[what] != value]


def _check(way: _Way, interrupts: int) -> tuple[int, list[str]]:
    """How many interrupts came in time, and what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.path.realpath(name))
        loads, dice, problems, came = _Loads(way, folder), random.Random(0), list[str](), 0
        before = loads.left()
        for number in range(interrupts):
            came += loads.interrupted(dice)
            if number % _HUNDRED == _HUNDRED - 1 or number == interrupts - 1:
                problems += _settled(loads, before)
                signal.alarm(_HANG_SECONDS)
                if loads.digest() != loads.wanted:
                    problems.append("the next load is wrong")
                signal.alarm(0)
        # What an interrupt left of an unfinished entry, the next load that makes it has removed.
        problems += [f"left: {path}" for path in leftovers(folder / "cache")]
    return came, problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Interrupt loads, and say what came of it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--interrupts", type=int, default=3000, help="of all ways together (default 3000)")
    args = parser.parse_args(arguments)
    ort.set_default_logger_severity(SILENT)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    share = -(-args.interrupts // len(WAYS))
    rows = []
    for name, way in WAYS.items():
        came, problems = _check(way, share)
        rows.append([name, str(share), str(came), "; ".join(problems) or "none"])
    print("\n".join(table(_COLUMNS, rows)))
    return int(any(row[-1] != "none" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
