"""`run`: a program runs as ever, with the package switched on, and its sessions are told of at the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ort_qdq_plugin.cli import run as run_module
from tests.cli.support import Here, Outcome, apart
from tests.support import CPU, ROOT, START, save, stack

LOAD = f"import onnxruntime; onnxruntime.InferenceSession(sys.argv[1], providers={CPU!r})\n"


def run(code: str, *arguments: object, **variables: str) -> Outcome:
    return apart("run", "--", sys.executable, "-c", START + code, *arguments, **variables)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save(stack(3, 128), tmp_path, "external"))


def test_every_session_is_told_of_behind_the_programs_own_output(model: str) -> None:
    code = f"""
import subprocess
{LOAD}
subprocess.run([sys.executable, "-c", {START + LOAD!r}, sys.argv[1]], check=True)
sys.stderr.write("the program's own\\n")
sys.exit(7)
"""
    done = run(code, model, ORT_QDQ_PLUGIN_LOG="error")
    assert (done.code, done.out) == (7, "")
    own, *told = done.err.splitlines()
    assert own == "the program's own"
    assert ["3 fused" in line and model in line for line in told] == [True, True]
    assert len({line.split(":")[0] for line in told}) == 2  # processes


@pytest.mark.parametrize(("level", "lines"), [(None, 1), ("debug", 1), ("error", 0)])
def test_a_log_that_the_user_has_set_is_kept(level: str | None, lines: int, model: str, tmp_path: Path) -> None:
    """And what happened is told all the same."""
    given = {"ORT_QDQ_PLUGIN_LOG_FILE": str(tmp_path / "log")} | ({"ORT_QDQ_PLUGIN_LOG": level} if level else {})
    done = run(LOAD, model, **given)
    assert (done.code, done.err.count("3 fused")) == (0, 1)
    assert (tmp_path / "log").read_text().count("3 fused") == lines


def test_a_log_on_stderr_stays_there(model: str) -> None:
    done = run(f"{LOAD}sys.stderr.write('the end\\n')", model, ORT_QDQ_PLUGIN_LOG="info")
    before, _, behind = done.err.partition("the end\n")
    assert ["3 fused" in part for part in (before, behind)] == [True, True]


def test_a_program_without_sessions() -> None:
    done = run("print('hello')")
    assert (done.code, done.out) == (0, "hello\n")
    assert "has created a session" in done.err


@pytest.mark.parametrize("arguments", [["run"], ["run", "--"], ["run", "--", "no-such-program"]])
def test_what_cannot_be_run(arguments: list[str], here: Here) -> None:
    said = here.refused(*arguments)
    assert arguments[-1] in said or "which program" in said


@pytest.mark.parametrize(
    ("sent", "code"),
    [pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, marks=pytest.mark.needs("interrupts")), (signal.SIGINT, 3)],
)
def test_signals_are_the_programs(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = f"""
import pathlib, sys, time
pathlib.Path({str(ready)!r}).touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(3)
"""
    command = [sys.executable, "-m", "ort_qdq_plugin", "run", "--", sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    while not ready.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    if sent is signal.SIGINT:
        # As a terminal does, to all of them.
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    assert process.wait(30) == code


@pytest.mark.parametrize(
    ("said", "given", "expected"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", None, "None"),
        ("always madvise [never]", None, "None"),
        (None, None, "None"),
    ],
)
def test_huge_pages_where_they_help(
    said: str | None, given: str | None, expected: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    enabled = tmp_path / "enabled"
    if said is not None:
        enabled.write_text(said)
    monkeypatch.setattr(run_module, "_HUGE_PAGES", enabled)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    code = "import os; print(os.environ.get('GLIBC_TUNABLES'), os.environ['ORT_QDQ_PLUGIN'])"
    assert Here(capfd)("run", "--", sys.executable, "-c", code).out.split() == [expected, "1"]
