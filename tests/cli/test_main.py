"""The command line as a whole: what is wrong is said in one line, and the package does without it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import Here, apart
from tests.support import ROOT, environment, mixed, python

COMMANDS = sorted(path.stem for path in (ROOT / "ort_qdq_plugin" / "cli").glob("*.py") if "EXAMPLE" in path.read_text())


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"main"}))
def test_every_command_helps_with_an_example(command: str, here: Here) -> None:
    assert f"Example: ort-qdq {command}" in " ".join(here.said(command, "--help").split())


@pytest.mark.parametrize("arguments", [["inspect"], ["nonsense"], ["inspect", "m.onnx", "--nonsense"], []])
def test_bad_usage_is_said_in_a_line(arguments: list[str], here: Here) -> None:
    assert re.fullmatch(r"ort-qdq.*--help\)\n", here.refused(*arguments))


CONTENTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "directory": Path.mkdir,
    "empty": Path.touch,
    "garbage": lambda path: path.write_bytes(b"\xff" * 10_000),
    "text": lambda path: path.write_bytes(b"no model\n" * 100),
    "truncated": lambda path: path.write_bytes(mixed()[:-1000]),
    "forbidden": lambda path: path.write_bytes(mixed()),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_what_is_no_model_is_said_in_a_line(what: str, tmp_path: Path, here: Here) -> None:
    path = tmp_path / "m.onnx"
    CONTENTS[what](path)
    if what == "forbidden":
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    assert str(path) in here.refused("inspect", path)


def test_the_home_directory_is_found_where_no_shell_looks(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    (home / "m.onnx").write_bytes(mixed())
    assert str(home / "cache") in here.said("warm", "~/m.onnx", "--dir=~/cache")
    assert "1 entry" in here.said("cache", "list", "--dir=~/cache")
    monkeypatch.setenv("ORT_QDQ_PLUGIN_CACHE_DIR", "~/cache")
    assert "1 entry" in here.said("cache", "list")
    assert "there already" in here.said("warm", "~/m.onnx")
    here.said("export", "~/m.onnx", "~/fused.onnx")
    assert (home / "fused.onnx").exists()
    assert not [*elsewhere.iterdir()]


@pytest.mark.needs("a shell")
def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    shell = f"{sys.executable} -m ort_qdq_plugin inspect m.onnx | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) in (("", 0), ("", 141))  # it may be faster than the reader is gone


@pytest.mark.needs("a shell")
def test_shells_complete_commands_options_and_paths(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    done = apart("--print-completion", "bash")
    assert (done.code, done.err) == (0, "")
    (tmp_path / "complete").write_text(done.out)
    (tmp_path / "model.onnx").touch()
    asked = """
source complete
for words in "insp" "inspect --unf" "inspect mod"; do
  COMP_WORDS=(ort-qdq $words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _shtab_ort_qdq ort-qdq
  echo "${COMPREPLY[@]}"
done
"""
    told = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert told.stdout.split() == ["inspect", "--unfused", "model.onnx"], told


def test_completion_says_what_it_needs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'ort-qdq-plugin[cli]'" in here.refused("--print-completion", "zsh")
    here.refused("--print-completion", "cmd")


def test_the_package_does_without_it() -> None:
    done = python("""
import sys
from ort_qdq_plugin import Options, create_session, activate
assert not [name for name in sys.modules if name.startswith(("ort_qdq_plugin.cli", "rich", "matplotlib", "argparse"))]
""")
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_output_cannot_encode(tmp_path: Path) -> None:
    """As on Windows, where a pipe has an encoding of a few hundred characters."""
    path = tmp_path / "\u6a21\u578b.onnx"
    path.write_bytes(mixed())
    variables = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    assert apart("warm", "--dir", tmp_path / "cache", path, **variables).code == 0
    done = apart("cache", "list", "--dir", tmp_path / "cache", **variables)
    assert (done.code, done.err) == (0, "")
    assert "\\u6a21\\u578b.onnx" in done.out


@pytest.mark.needs("a shell")
@pytest.mark.parametrize(
    ("redirected", "told", "code"),
    [
        ("inspect m.onnx > /dev/full", "ort-qdq inspect: m.onnx: standard output: No space left on device\n", 2),
        ("inspect m.onnx >&-", "", 0),
        ("inspect gone.onnx 2>&-", "", 2),
        ("inspect gone.onnx 2> /dev/full", "", 2),
    ],
)
def test_output_that_cannot_be_written(redirected: str, told: str, code: int, tmp_path: Path) -> None:
    if "/dev/full" in redirected and not Path("/dev/full").exists():
        pytest.skip("no device is always full here")
    (tmp_path / "m.onnx").write_bytes(mixed())
    shell = f"{sys.executable} -m ort_qdq_plugin {redirected}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == (told, code)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_no_path(command: str, here: Here) -> None:
    """As of a variable of the shell that is not set: `bench` without a model would measure one of its own."""
    arguments = {"cache": ["list", "--dir", ""], "demo": None, "run": None, "main": None}.get(command, [""])
    if arguments is not None:
        more = ["out"] if command in ("export", "prepare") else []
        assert "is empty, must be a path" in here.refused(command, *arguments, *more)
