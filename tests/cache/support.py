"""Loads through the cache, in this process and in others; files that change."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options, Report, create_session
from ort_qdq_plugin.cache.entry import MANIFEST, MODEL, describe, digest_at, write_file
from ort_qdq_plugin.cache.key import Identity
from ort_qdq_plugin.cache.manifest import Manifest, SourceFile
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.system.platform import files, host
from tests.lacking import fcntl
from tests.support import CPU, Form, descriptors, made_report, refuse, save, x_of

__all__ = [
    "KEY",
    "PACKED",
    "REPLACED",
    "Loaded",
    "begun",
    "digest_of_results",
    "empty",
    "entries",
    "in_use",
    "is_found",
    "leftovers",
    "load",
    "loading",
    "locked_by_others",
    "locked_elsewhere",
    "longer",
    "make_entry",
    "outcome_of",
    "removed",
    "replaced",
    "rewritten",
    "saved",
    "without_locks",
    "writable_by_all",
    "written_back",
]  # fmt: skip

KEY, PACKED = "0123abcd", "packed-0.bin"
"""An entry's name, and that of a file in it."""


class Loaded(NamedTuple):
    """What a load gave: its report, and a digest of the results."""

    report: Report
    digest: str


def load(model: Path | str, cache: Path | None, **options: Any) -> Loaded:
    """Load a model and run it."""
    session = create_session(str(model), providers=CPU, options=Options(cache_dir=cache, **options))
    return Loaded(made_report(session), digest_of_results(session))


def saved(proto: onnx.ModelProto, folder: Path, form: Form = "external") -> Path:
    """The path of a model in a new folder of its own."""
    folder.mkdir()
    return Path(str(save(proto, folder, form)))


def digest_of_results(session: ort.InferenceSession) -> str:
    """A digest of what a session computes."""
    outputs = session.run(None, x_of(session))
    return hashlib.md5(b"".join(np.asarray(one).tobytes() for one in outputs)).hexdigest()


def entries(cache: Path) -> list[Path]:
    """The folders of all entries."""
    folders = (path for path in cache.iterdir() if path.is_dir() and "." not in path.name)
    return sorted(folder for folder in folders if not _is_unfinished(folder))


def _is_unfinished(folder: Path) -> bool:
    # Entries are made at their place where a folder with open files cannot be renamed.
    return not files.SHARES_FREELY and not (folder / MANIFEST).exists()


def written_back(cache: Path) -> None:
    """Wait until all entries are known to be on disk: a thread brings them there in the background."""
    end = time.monotonic() + 30
    while not all((entry / "on-disk").exists() for entry in entries(cache)):
        assert time.monotonic() < end
        time.sleep(0.01)


def leftovers(cache: Path) -> list[str]:
    """What is neither an entry nor a lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix in (".tmp", ".old") or _is_left(path))


def _is_left(path: Path) -> bool:
    return path.is_dir() and "." not in path.name and _is_unfinished(path)


_CODE = """
import json, sys
from tests.cache.support import load
model, cache, options = sys.argv[1:]
loaded = load(model, cache, **json.loads(options))
print(json.dumps([loaded.report.cache, loaded.digest]), flush=True)
"""


def loading(model: Path, cache: Path, **options: Any) -> subprocess.Popen[str]:
    """A process that loads the model and prints [report.cache, digest]."""
    command = [sys.executable, "-c", _CODE, str(model), str(cache), json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process of `loading` printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    how, digest = json.loads(out.splitlines()[-1])
    return how, digest


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
    _ = fcntl.flock  # by which the other process locks it: where there is none, the test is skipped
    command = [sys.executable, "-S", "-c", _HOLDS, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def without_locks(monkeypatch: pytest.MonkeyPatch, problem: int = errno.ENOLCK) -> None:
    """From now on, locking any file fails like this."""
    refuse(monkeypatch, fcntl, "flock", problem)


def begun(store: Store, key: str = KEY) -> str:
    """A folder for the files of a new entry."""
    path = store.unfinished_path(key)
    store.begin(key, path)
    return path


def make_entry(
    store: Store, *, source: Path, key: str = KEY, path: str = "", names: tuple[str, ...] = (), location: str = "",
    verify: bool = True, packed: bytes = b"packed",
) -> Path:  # fmt: skip
    """An entry that was made of one file, in a folder that was begun already or a new one; that folder.

    `names` by which the model names the file, and the `location` by which the entry's model does; `verify`: with digests.
    """
    path = path or begun(store, key)
    contents = {MODEL: b"the rewritten model", PACKED: packed}
    for name, data in contents.items():
        write_file(os.path.join(path, name), data)
    identity, digest = Identity.of(os.stat(source)), digest_at(str(source)) if verify else ""
    described = SourceFile(str(source), identity, names, location, digest)
    written = describe(path, [*contents], verify)
    store.commit(key, path, Manifest(key, (described,), Report("borrowed"), host.boot_id(), written))
    return Path(store.path_of(key))


@contextmanager
def locked_by_others(entry: Path, *, shared: bool) -> Iterator[None]:
    """While the block runs, another descriptor holds a lock on the entry; BlockingIOError if it cannot have it."""
    with open(entry / MANIFEST, "rb") as manifest:
        fcntl.flock(manifest, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield


def in_use(entry: Path) -> bool:
    with locked_by_others(entry, shared=True):
        pass  # which others may as well
    try:
        with locked_by_others(entry, shared=False):
            return False
    except BlockingIOError:
        return True


def is_found(store: Store, *, verify: bool = False) -> bool:
    """Whether there is an entry that can be used; either way, nothing stays open."""
    wait_until_on_disk()
    before = descriptors()
    found = store.find(KEY, verify=verify) is not None
    assert descriptors() == before
    return found


# ---- changes of files; their owner may have to make them writable first


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def longer(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, (0, 0))


def empty(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    """By another file of the same content and time."""
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, (0, 0))
    os.replace(other, path)


REPLACED = pytest.param(replaced, marks=pytest.mark.needs("free names"))
"""While it is open."""


def writable_by_all(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IWOTH)
