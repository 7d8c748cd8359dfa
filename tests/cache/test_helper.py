"""The helper process: what it runs, where, for how long, and what its failure costs."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ort_qdq_plugin import Options, warm
from ort_qdq_plugin.cache import helper
from ort_qdq_plugin.cache.helper import prepacked_in_another_process
from tests.cache.support import entries
from tests.lacking import require
from tests.support import descriptors, save, stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "entry").mkdir()
    return tmp_path / "entry"


def interpreter(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a shell script run in place of the helper process; "$4" is the entry's folder."""
    require("a shell")
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def test_what_it_is_given(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
    env > "{tmp_path}/environment"
    pwd > "$4/here"
    echo "$1 $2" > "{tmp_path}/how"
    echo a message
    echo 4321
    """
    interpreter(tmp_path / "python3", script, monkeypatch)
    monkeypatch.setenv("ORT_QDQ_PLUGIN", "1")
    assert prepacked_in_another_process(str(folder)) == 4321
    environment = (tmp_path / "environment").read_text().splitlines()
    assert "ORT_DISABLE_TELEMETRY=1" in environment
    assert not [line for line in environment if line.startswith("ORT_QDQ_PLUGIN")]
    assert (folder / "here").read_text() == f"{folder}\n"
    assert (tmp_path / "how").read_text() == "-I -c\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=1", "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0:glibc.malloc.arena_max=1", "glibc.malloc.hugetlb=0:glibc.malloc.arena_max=1"),
    ],
)
def test_what_the_user_tells_the_c_library_is_kept(
    given: str | None, expected: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path / "python3", f'echo "$GLIBC_TUNABLES" > "{tmp_path}/tunables"; echo 1', monkeypatch)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    assert prepacked_in_another_process(str(folder)) == 1
    assert (tmp_path / "tunables").read_text() == f"{expected}\n"


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo first >&2; echo the problem >&2; exit 1", "the problem"),
        ("exit 3", "exit status 3"),
        ("exit 0", "index"),
        ("echo no number", "number"),
        ("exec sleep 60", "too long"),
    ],
)
def test_a_failure_is_one_warning(
    folder: Path,
    tmp_path: Path,
    script: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    interpreter(tmp_path / "python3", script, monkeypatch)
    monkeypatch.setattr(helper, "_SECONDS", 2)
    with caplog.at_level(logging.WARNING):
        assert prepacked_in_another_process(str(folder)) == 0
    (record,) = caplog.records
    assert problem in record.message


def test_no_process_is_left_by_an_interrupt(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter(tmp_path / "python3", f"echo $$ > {tmp_path}/pid; exec sleep 60", monkeypatch)
    before, sleep = descriptors(), time.sleep

    def interrupted(seconds: float) -> None:
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepacked_in_another_process(str(folder))
    monkeypatch.undo()
    end = time.monotonic() + 10
    while descriptors() != before or Path("/proc", (tmp_path / "pid").read_text().strip()).exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interpreter_that_ends_starts_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't fork at interpreter shutdown")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert prepacked_in_another_process(str(folder)) == 0
    assert "can't fork" in caplog.text


@pytest.mark.parametrize("executable", ["/no/such/python3", "/usr/bin/uwsgi", "", None])
def test_programs_that_are_no_interpreter_are_not_run(
    folder: Path, executable: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    if executable != "/no/such/python3":
        monkeypatch.setattr(subprocess, "Popen", None)
    assert prepacked_in_another_process(str(folder)) == 0
    assert str(executable) in caplog.text


def test_frozen_programs_are_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert prepacked_in_another_process(str(folder)) == 0
    assert "not a Python interpreter" in caplog.text


def test_no_file_of_the_current_directory_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(stack(1, 64), tmp_path, "external")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("json", "onnx", "numpy", "onnxruntime", "ort_qdq_plugin", "sitecustomize", "tempfile", "mmap"):
        (elsewhere / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write(__name__)\n")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    report = warm(str(path), options=Options(cache_dir=tmp_path / "cache", share_weights=True))
    assert report.shared_bytes > 0
    assert len(entries(tmp_path / "cache")) == 1
    assert not (tmp_path / "ran").exists()
