"""The temporary folders that onnxruntime-genai is given."""

import gc
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin.genai import folder as module
from ort_qdq_plugin.genai.config import CONFIG_NAME
from ort_qdq_plugin.genai.folder import ConfigFolder, new_folder
from tests.lacking import fcntl

HOLD = """
import sys
from ort_qdq_plugin.genai.folder import new_folder
folder = new_folder(sys.argv[1], sys.argv[1])
print(folder.path, flush=True)
sys.stdin.read()
"""


def made(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def in_itself(folder: Path) -> ConfigFolder:
    """A temporary folder of a model, in that model's own folder."""
    return new_folder(str(folder), str(folder))


def test_filled_and_removed(tmp_path: Path) -> None:
    original, directory = tmp_path / "original", tmp_path / "directory"
    (original / "sub").mkdir(parents=True)
    directory.mkdir()
    (original / "tokenizer.json").write_text("tokens")
    (original / CONFIG_NAME).write_text("old")
    folder = new_folder(str(directory), str(original))
    folder.fill(str(original), b"new", {"ort-qdq-0": str(tmp_path)})
    path = Path(folder.path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [(path / name).read_text() for name in (CONFIG_NAME, "tokenizer.json")] == ["new", "tokens"]
    assert (path / "sub").is_dir()
    assert os.readlink(path / "ort-qdq-0") == str(tmp_path)
    del folder
    gc.collect()
    assert made(directory) == []
    assert (original / "tokenizer.json").read_text() == "tokens"


def test_what_killed_processes_left_is_removed_and_no_other(tmp_path: Path) -> None:
    holding, paths = [], []
    for _ in range(2):
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        holding.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert holding[-1].stdout is not None
        paths.append(Path(holding[-1].stdout.readline().strip()))
    holding[0].send_signal(signal.SIGKILL)
    holding[0].communicate()
    strange = [tmp_path / "ort-qdq-genai-file", tmp_path / "other"]
    strange[0].touch()
    strange[1].mkdir()
    folder = in_itself(tmp_path)
    assert made(tmp_path) == sorted([paths[1], Path(folder.path), *strange])
    holding[1].communicate("")
    assert not paths[1].exists()


@pytest.mark.parametrize(("owner", "name"), [(os, "open"), (fcntl, "flock")])
def test_one_that_another_process_takes_for_left_behind(
    owner: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is opened, or before it is locked."""
    real = getattr(owner, name)
    taken: list[Path] = []

    def take_once(first: Any, *rest: Any, **named: Any) -> Any:
        if not taken:
            taken.append(made(tmp_path)[0])
            taken[0].rmdir()
        return real(first, *rest, **named)

    monkeypatch.setattr(owner, name, take_once)
    folder = in_itself(tmp_path)
    assert made(tmp_path) == [Path(folder.path)] != taken


def test_a_forked_child_leaves_it_to_its_parent(tmp_path: Path) -> None:
    folder = in_itself(tmp_path)
    child = os.fork()
    if child == 0:
        folder.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert made(tmp_path) == [Path(folder.path)]


def test_a_directory_on_the_same_file_system_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "spill_directories", lambda _given: (str(tmp_path / name) for name in "ab"))
    monkeypatch.setattr(module, "_device", lambda path: os.stat(tmp_path).st_dev if path.endswith("b") else -1)
    assert new_folder(None, str(tmp_path)).path.startswith(str(tmp_path / "b"))


def test_a_directory_in_which_others_could_replace_it_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [tmp_path / "open", tmp_path / "own"]
    for directory in directories:
        directory.mkdir()
    directories[0].chmod(0o777)
    monkeypatch.setattr(module, "spill_directories", lambda _given: map(str, directories))
    assert new_folder(None, str(tmp_path)).path.startswith(str(directories[1]))


def test_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"spill_dir.*file"):
        new_folder(str(tmp_path / "file"), str(tmp_path))
