"""troubleshooting.md and command-line.md: models that cannot be loaded, what is told of them, and exit codes."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from conformance.wrong_uses.scene import make_scene
from ort_qdq_plugin import ModelError, Options, StockReason, create_session, export, inspect, report_of, warm
from tests.claims.registry import claim
from tests.cli.support import Here
from tests.support import CPU, python, quiet

PAGE = "docs/troubleshooting.md"
COMMANDS = "docs/command-line.md"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_scene(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)


def error_of(path: str) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # ONNX Runtime has many classes of them
        create_session(path, quiet(), CPU)
    return raised.value


@claim(
    PAGE,
    "`create_session` raises the error of ONNX Runtime, as it is.",
    "it has a note, which Python shows below the error: `ort-qdq-plugin: ...`.",
)
def test_notes(scene: Path) -> None:
    for path, theirs in {
        "pointer.onnx": "Protobuf parsing failed", "missing/model.onnx": "External data path does not exist",
        "short/model.onnx": "given file_length: 1000 are out of bounds",
    }.items():  # fmt: skip
        error = error_of(path)
        with pytest.raises(type(error)) as stock:
            ort.InferenceSession(path, quiet(), CPU)
        assert (theirs in str(error), str(error)) == (True, str(stock.value))
    done = python("from ort_qdq_plugin import create_session; create_session('pointer.onnx')", cwd=scene)
    assert done.stderr.splitlines()[-1].startswith("ort-qdq-plugin: pointer.onnx: not an ONNX model")


@claim(PAGE, "`inspect`, `warm` and `export` raise the same as `ModelError`, and commands exit with 2.")
@claim("docs/cache.md", "`warm` raises an error instead, and so it does for a model that is not there")
@claim("docs/options.md", "or external data is missing")
def test_calls_and_commands(scene: Path, here: Here) -> None:
    options = Options(cache_dir=scene / "cache")
    for path in ("pointer.onnx", "short/model.onnx", "missing/model.onnx"):
        calls: list[Callable[[str], object]] = [
            inspect, lambda path: warm(path, options=options), lambda path: export(path, "new.onnx"),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ModelError) as raised:
                call(path)
            assert str(raised.value) in error_of(path).__notes__[0]
        for command in (["inspect", path], ["warm", path, "--dir", "cache"], ["export", path, "new.onnx"]):
            assert str(raised.value) in here.refused(*command)
    with pytest.raises(FileNotFoundError):
        warm("nowhere.onnx", options=options)


@claim(PAGE, "| `external data ... of a model without a folder` | give the model's path, not its bytes |")
@claim(PAGE, "| `not an ONNX model: it is the external data of a model` | name the `.onnx` file |")
@claim(PAGE, "`not a whole ONNX model: its graph ends at byte ...`")
@claim(PAGE, "| `a folder, not an .onnx file`, `a file, not a folder of onnxruntime-genai` |")
def test_messages(scene: Path) -> None:
    models: dict[str | bytes, str] = {
        Path("model.onnx").read_bytes(): "external data 'model.data' of a model without a folder",
        "model.data": "not an ONNX model: it is the external data of a model: name that, model.onnx",
        "cut.onnx": "not a whole ONNX model: its graph ends at byte ",
        "folder": "folder: a folder, not an .onnx file",
    }
    for model, words in models.items():
        with pytest.raises(ModelError, match=words):
            inspect(model)


@claim(PAGE, "External data that no node reads need not be there: stock ONNX Runtime loads such a model.")
def test_what_nothing_reads(scene: Path) -> None:
    model = onnx.load("model.onnx")
    unread = onnx.load("missing/model.onnx", load_external_data=False).graph.initializer[0]
    unread.name = "unread"
    model.graph.initializer.append(unread)
    Path("missing/unread.onnx").write_bytes(model.SerializeToString())
    inspect("missing/unread.onnx")
    assert report_of(create_session("missing/unread.onnx", quiet(), CPU)) is not None


@claim(
    PAGE, "| `UNREADABLE` | [the detail, and a note on ONNX Runtime's error](#the-model-cannot-be-loaded), say what is wrong"
)
@claim(PAGE, "What [cannot be opened](#the-model-cannot-be-loaded) is no warning: ONNX Runtime has an error for it")
def test_no_warning(scene: Path, caplog: pytest.LogCaptureFixture) -> None:
    error_of("pointer.onnx")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@claim(
    PAGE,
    "they begin with `ort-qdq-plugin:` where a program has set up no logging, and come from the logger `ort_qdq_plugin`",
)
def test_whose_warnings_they_are(scene: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "from ort_qdq_plugin import Options, create_session; create_session('model.onnx', options=Options(cache_dir='file'))"
    )
    assert python(code, cwd=scene).stderr.startswith("ort-qdq-plugin: loading without the cache")
    create_session("model.onnx", quiet(), CPU, options=Options(cache_dir="file"))
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == ["ort_qdq_plugin"]


@claim(PAGE, "| `FUSION_DISABLED` | the detail says which of the session's options it is:")
def test_which_option_it_is(scene: Path) -> None:
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    report = report_of(create_session("model.onnx", options, CPU))
    assert report is not None
    assert (report.stock_reason, report.stock_detail) == (
        StockReason.FUSION_DISABLED, "graph_optimization_level is ORT_ENABLE_BASIC, below ORT_ENABLE_EXTENDED",
    )  # fmt: skip


@claim(COMMANDS, "An empty path, as of a variable that is not set, is bad usage.")
@claim(COMMANDS, "what is no regular file, a device for instance, is never replaced")
@claim(COMMANDS, "with one line on stderr that names the argument or the file, the fault, and often")
def test_bad_usage(scene: Path, here: Here) -> None:
    assert "model is empty" in here.refused("bench", "")
    if hasattr(os, "mkfifo"):
        assert "not a regular file" in here.refused("export", "model.onnx", "fifo", "--force")
        assert not Path("fifo").is_file()


@claim(COMMANDS, "with its session options and execution providers")
@claim(COMMANDS, "is looked at before anything is measured")
def test_before_measuring_and_in_a_folder(scene: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("ort_qdq_plugin.cli.bench.compare", None)
    assert "there is no folder" in here.refused("bench", "model.onnx", "--plot", "nowhere/memory.png")
    assert "graph_optimization_level is ORT_ENABLE_BASIC" in here.said("inspect", "basic")
