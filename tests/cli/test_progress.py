"""Progress as a user sees it: on a terminal of 80 columns, and nowhere else."""

import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from tests.cli.support import shown_by
from tests.support import START, environment, save, stack

# As fast as a test should be, a load has no line: here it has one at once, and each stage takes long enough to be seen.
AT_ONCE = """
import time
from ort_qdq_plugin.load import bar
bar._PATIENCE_SECONDS, bar._PERIOD_SECONDS, begin = 0, 0.002, bar._Bar.stage
def stage(self, name):
    begin(self, name)
    time.sleep(0.05)
bar._Bar.stage = stage
"""
COMMAND = f"{AT_ONCE}from ort_qdq_plugin.cli.main import main\nimport sys\nsys.exit(main(sys.argv[2:]))"
LOADED = "import onnxruntime, sys\nonnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
SHOWN = {
    "create_session": ["packing", "creating the session"],
    "variable": ["packing", "creating the session"],
    "warm": ["packing", "pre-packing", "waiting for the disk"],
    "export": ["packing", "writing"],
}


def program(way: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What loads the model in a folder, and its variables."""
    model, variables = str(folder / "model.onnx"), dict[str, str]()
    rest: list[str] = []
    if way == "create_session":
        code = f"{AT_ONCE}import sys\nfrom ort_qdq_plugin import Options, create_session\n"
        code += "create_session(sys.argv[1], options=Options(progress='bar'))"
    elif way == "variable":
        code, variables = AT_ONCE + START + LOADED, {"ORT_QDQ_PLUGIN": "1", "ORT_QDQ_PLUGIN_PROGRESS": "1"}
    elif way == "warm":
        code, rest = COMMAND, ["warm", model, "--share-weights", "--dir", str(folder / "cache")]
    else:
        code, rest = COMMAND, ["export", model, str(folder / "out.onnx"), "--external-data", "--force"]
    return [sys.executable, "-c", code, model, *rest], variables


@pytest.mark.parametrize("way", SHOWN)
def test_progress_on_a_terminal_and_nowhere_else(way: str, tmp_path: Path) -> None:
    save(stack(6, 1024), tmp_path, "external")
    command, variables = program(way, tmp_path)
    shown = shown_by(command, columns=80, typed="", **variables)
    assert shown.code == 0, shown.out
    *lines, erased, rest = shown.out.split("\r\n")[0].split("\r") if way in ("warm", "export") else shown.out.split("\r")
    assert max(map(len, lines)) < 80
    assert (lines[0], set(erased)) == ("", {" "})
    stages = [line.rstrip().partition(": ")[2].partition(" [")[0].partition(",")[0] for line in lines[1:]]
    assert [stage for stage, _ in groupby(stages) if stage in SHOWN[way]] == SHOWN[way]
    assert all(line.startswith("model.onnx: ") for line in lines[1:])
    assert rest.startswith(str(tmp_path)) == (way in ("warm", "export"))
    redirected = subprocess.run(command, env={**environment(), **variables}, capture_output=True, text=True, timeout=60)
    assert (redirected.returncode, redirected.stderr) == (0, "")
    assert redirected.stdout.count("\r") == 0


def test_a_short_load_shows_nothing(tmp_path: Path) -> None:
    save(stack(1, 64), tmp_path, "external")
    # A busy machine may make any load long.
    code = "import sys\nfrom ort_qdq_plugin import Options, create_session\nfrom ort_qdq_plugin.load import bar\n"
    code += "bar._PATIENCE_SECONDS = 60\n"
    code += "create_session(sys.argv[1], options=Options(progress='bar'))"
    assert shown_by([sys.executable, "-c", code, str(tmp_path / "model.onnx")]).out == ""
    command, variables = program("variable", tmp_path)
    assert shown_by(command, columns=80, typed="", **{**variables, "ORT_QDQ_PLUGIN_PROGRESS": "0"}).out == ""
