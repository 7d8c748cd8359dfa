"""What to type where something is missing, or where builds of ONNX Runtime lie over each other."""

import subprocess
import sys
from pathlib import Path

import pytest

from ort_qdq_plugin.ort.installed import explained, several_builds, told_before_of, too_old
from tests.support import CPU, START, environment, save, stack

BLOCK = """
import sys
class Blocked:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked)
"""
COMMAND = "import runpy; sys.argv[0] = 'ort-qdq'; runpy.run_module('ort_qdq_plugin', run_name='__main__')"


def run(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=60)


def build(folder: Path, name: str, version: str = "1.32.0", package: str = "onnxruntime") -> None:
    record = folder / f"{name}-{version}.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text(f"{package}/LICENSE,sha256=x,1\n{package}/__init__.py,sha256=x,1\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that modules are imported from."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "missing"), str(tmp_path)])
    return tmp_path


NO_RUNTIME = ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
BROKEN = ImportError("libx.so.1: no such file", name="onnxruntime.capi.onnxruntime_pybind11_state")


@pytest.mark.usefixtures("folder")
def test_no_build_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    assert "not installed: pip install 'ort-qdq-plugin[cpu]'" in str(explained(NO_RUNTIME))
    assert not several_builds()


def test_one_build(folder: Path) -> None:
    """Packages that only have a similar name are none."""
    build(folder, "onnxruntime_gpu")
    build(folder, "onnxruntime_extensions", package="onnxruntime_extensions")
    build(folder, "onnxruntime_genai", package="onnxruntime_genai")
    assert not several_builds()
    said = str(explained(BROKEN))
    assert said.startswith("onnxruntime-gpu cannot be imported (libx.so.1: no such file): pip install ")


@pytest.mark.parametrize("error", [NO_RUNTIME, BROKEN, AttributeError("InferenceSession", obj=sys.modules["onnxruntime"])])
def test_several_builds(error: Exception, folder: Path) -> None:
    build(folder, "onnxruntime")
    build(folder, "onnxruntime_openvino", "1.24.1")
    said = several_builds()
    assert said.startswith("onnxruntime and onnxruntime-openvino are installed over each other")
    assert "pip uninstall -y onnxruntime onnxruntime-openvino && pip install onnxruntime-openvino" in said
    assert explained(error) == said


@pytest.mark.parametrize(
    ("version", "is_old"),
    [("1.24.1", True), ("1.3.0", True), ("1.31.0", False), ("1.40.0.dev20261101", False), ("2.0.0", False)],
)
def test_an_old_build(version: str, is_old: bool, folder: Path) -> None:
    assert not too_old()
    build(folder, "onnxruntime_openvino", version)
    said = too_old()
    assert bool(said) is is_old
    assert not is_old or said.startswith(
        f"onnxruntime-openvino {version} is too old: pip install --upgrade 'onnxruntime-openvino>="
    )


def test_builds_in_several_folders_are_not_over_each_other(folder: Path) -> None:
    build(folder, "onnxruntime")
    other = folder / "other"
    other.mkdir()
    build(other, "onnxruntime_gpu")
    sys.path.append(str(other))
    assert not several_builds()


def test_other_errors() -> None:
    assert explained(ModuleNotFoundError("No module named 'onnx'", name="onnx")) == "onnx is not installed: pip install onnx"
    for error in (ModuleNotFoundError("x", name="x"), AttributeError("x", obj=sys), ValueError("x"), ImportError("x")):
        assert explained(error) is None


def test_each_problem_is_told_once() -> None:
    assert [told_before_of(f"{__name__} {problem}") for problem in "aab"] == [False, True, False]


@pytest.mark.parametrize("name", ["create_session", "genai", "export", "activate"])
def test_names_that_need_it_say_so(name: str) -> None:
    """In one sentence. Importing the package, and what needs nothing, works."""
    code = "import ort_qdq_plugin; ort_qdq_plugin.Options(); ort_qdq_plugin.{0}{1}"
    done = run(BLOCK.format(["onnxruntime"]) + code.format(name, "()" if name == "activate" else ""))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: "), done.stderr
    assert "pip install" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["onnxruntime", "onnx"])
def test_commands(module: str, tmp_path: Path) -> None:
    model = save(stack(2, 64), tmp_path, "external")
    for command in (("inspect", model), ("export", model, tmp_path / "out"), ("warm", "--dir", tmp_path / "c", model)):
        done = run(BLOCK.format([module]) + COMMAND, *command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert "pip install" in done.stderr
    assert run(BLOCK.format([module]) + COMMAND, "cache", "list", "--dir", tmp_path).returncode == 0


@pytest.mark.parametrize("call", ["inspect(sys.argv[1])", "warm(sys.argv[1], options=Options(cache_dir=sys.argv[2]))"])
def test_calls_without_onnx_say_so(call: str, tmp_path: Path) -> None:
    model = save(stack(2, 64), tmp_path, "external")
    done = run(
        f"{BLOCK.format(['onnx'])}from ort_qdq_plugin import Options, inspect, warm; {call}", model, tmp_path / "cache"
    )
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: onnx is not installed: pip install onnx"


@pytest.mark.parametrize("call", ["create_session", "onnxruntime.InferenceSession"])
def test_without_onnx_stock_loads(call: str, tmp_path: Path) -> None:
    """And one warning for all loads."""
    model = save(stack(2, 64), tmp_path, "external")
    code = f"""
import onnxruntime
{"from ort_qdq_plugin import create_session" if call == "create_session" else ""}
for _ in range(3):
    {call}(sys.argv[1], providers={CPU!r})
"""
    done = run(BLOCK.format(["onnx"]) + START + code, model, ORT_QDQ_PLUGIN="1" if "." in call else "")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("onnx is not installed: pip install onnx") == 1
    assert done.stderr.count("\n") == 1


def test_the_variable_where_there_is_none(tmp_path: Path) -> None:
    """The program gets the error that it would get anyway, also where the removal of one of two builds has left a folder."""
    done = run(BLOCK.format(["onnxruntime"]) + START + "import onnxruntime", ORT_QDQ_PLUGIN="1")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'onnxruntime'"
    (tmp_path / "onnxruntime").mkdir()
    code = """
import os
sys.path[:] = [sys.argv[1], *(folder for folder in sys.path if not os.path.exists(folder + "/onnxruntime/capi"))]
import onnxruntime
print(hasattr(onnxruntime, "InferenceSession"))
import ort_qdq_plugin
ort_qdq_plugin.activate()
"""
    done = run(START + code, tmp_path, ORT_QDQ_PLUGIN="1")
    assert (done.returncode, done.stdout) == (1, "False\n"), done.stderr
    assert done.stderr.splitlines()[-1].startswith("ImportError: ")
    assert "pip install" in done.stderr.splitlines()[-1]


def test_numpy_is_missed_by_onnx_runtimes_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose error has no name."""
    error = ImportError("import numpy failed")
    assert explained(error) is None
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert explained(error) == "numpy is not installed: pip install numpy"
