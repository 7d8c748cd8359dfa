"""Loads through the cache, in this process and in others."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from ort_qdq_plugin import Options, Report, create_session
from ort_qdq_plugin.cache.manifest import Identity, Manifest, SourceFile
from ort_qdq_plugin.cache.store import MODEL, Store, describe, digest_at, write_file
from ort_qdq_plugin.system.platform import host
from tests.support import CPU, made_report, x_of

__all__ = [
    "KEY",
    "PACKED",
    "Loaded",
    "entries",
    "leftovers",
    "load",
    "loading",
    "loads_apart",
    "locked_elsewhere",
    "make_entry",
    "outcome_of",
    "without_locks",
    "written_back",
]


KEY, PACKED = "0123abcd", "packed-0.bin"
"""An entry's name, and that of a file in it."""


class Loaded(NamedTuple):
    """What a load gave: its report, and a digest of the results."""

    report: Report
    digest: str


def load(model: Path, cache: Path | None, **options: Any) -> Loaded:
    """Load a model and run it."""
    session = create_session(str(model), providers=CPU, options=Options(cache_dir=cache, **options))
    outputs = session.run(None, x_of(session))
    return Loaded(made_report(session), hashlib.md5(b"".join(np.asarray(one).tobytes() for one in outputs)).hexdigest())


def entries(cache: Path) -> list[Path]:
    """The folders of all entries."""
    return sorted(path for path in cache.iterdir() if path.is_dir() and "." not in path.name)


def written_back(cache: Path) -> None:
    """Wait until all entries are known to be on disk: a thread sees to that in the background."""
    end = time.monotonic() + 30
    while not all((entry / "on-disk").exists() for entry in entries(cache)):
        assert time.monotonic() < end
        time.sleep(0.01)


def leftovers(cache: Path) -> list[str]:
    """What is neither an entry nor a lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix in (".tmp", ".old"))


_CODE = """
import json, sys, time
from pathlib import Path
from tests.cache.support import load
model, cache, options = sys.argv[1:]
before = set(sys.modules)
start = time.perf_counter()
loaded = load(Path(model), Path(cache), **json.loads(options))
print(json.dumps([loaded.report.cache, loaded.digest, time.perf_counter() - start]), flush=True)
"""


def loading(model: Path, cache: Path, **options: Any) -> subprocess.Popen[str]:
    """A process that loads the model and prints [report.cache, digest, seconds]."""
    command = [sys.executable, "-c", _CODE, str(model), str(cache), json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome_of(process: subprocess.Popen[str]) -> tuple[str, str, float]:
    """What a process of `loading` printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    how, digest, seconds = json.loads(out.splitlines()[-1])
    return how, digest, seconds


def loads_apart(model: Path, cache: Path, count: int, **options: Any) -> list[tuple[str, str, float]]:
    """So many processes load the model at once."""
    return [outcome_of(process) for process in [loading(model, cache, **options) for _ in range(count)]]


# Not by this package's own locks: they are what is tested with it.
_HOLDS = """
import fcntl, os, sys
path, kind = sys.argv[1:]
fcntl.flock(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600), getattr(fcntl, kind))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_elsewhere(path: Path, kind: str = "LOCK_EX") -> Iterator[subprocess.Popen[str]]:
    """While the block runs, or until its input is closed, another process holds a lock on a file."""
    command = [sys.executable, "-c", _HOLDS, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def without_locks(monkeypatch: pytest.MonkeyPatch, problem: int = errno.ENOLCK) -> None:
    """From now on, locking any file fails like this."""

    def refuse(*_: object) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(fcntl, "flock", refuse)


def make_entry(
    store: Store, *, source: Path, key: str = KEY, path: str = "", names: tuple[str, ...] = (), location: str = "",
    verify: bool = True, packed: bytes = b"packed",
) -> Path:  # fmt: skip
    """An entry that was made of one file; its folder.

    Args:
        store: Where it is.
        source: The file.
        key: Of the entry.
        path: Its folder, where it was begun already.
        names: By which the model names the file.
        location: Of a link of the file; "" for none.
        verify: Whether digests are recorded.
        packed: What was packed.
    """
    path = path or store.begin(key)
    contents = {MODEL: b"the rewritten model", PACKED: packed}
    for name, data in contents.items():
        write_file(os.path.join(path, name), data)
    if location:
        os.link(source, os.path.join(path, location))
    identity, digest = Identity.of(os.stat(source)), digest_at(str(source)) if verify else ""
    described = SourceFile(str(source), identity, names, location, bool(location), digest)
    files = describe(path, [*contents], verify)
    store.commit(key, path, Manifest(key, (described,), Report("borrowed"), host.boot_id(), files))
    return Path(store.path_of(key))
