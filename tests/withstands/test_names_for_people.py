"""Names in a model, and paths, are anybody's: on a terminal and in a log they are text, and no commands or further lines."""

import logging
import os
import sys
from pathlib import Path

import onnx
import pytest

from ort_qdq_plugin import ModelError, create_session, inspect, report_of
from ort_qdq_plugin.errors import SourceUnreadableError
from ort_qdq_plugin.log import printable
from tests.cli.support import Here, apart
from tests.support import mixed

TITLE = "\x1b]0;owned\x07"
NAME = f"{TITLE}\r\nfused \u202e\x9b2J\u2028 all"
SHOWN = r"\x1b]0;owned\x07\r\nfused \u202e\x9b2J\u2028 all"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Its path and all its names have what steers a terminal."""
    proto = onnx.ModelProto.FromString(mixed())
    for node in proto.graph.node:
        node.name = NAME + node.output[0]
    path = tmp_path / f"{TITLE}\n.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def is_plain(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_what_is_not_printable_is_escaped() -> None:
    assert printable(NAME) == SHOWN
    assert printable("naïve \\x1b 模型") == "naïve \\x1b 模型"
    assert printable(os.fsdecode(b"\xff")) == r"\udcff"


def test_reports(model: Path) -> None:
    report = inspect(model)
    text = str(report)
    assert SHOWN in text
    assert is_plain(text)
    assert text.count("\n") == len(report.fused) + len(report.unfused) == 2


def test_reasons_for_stock(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.onnx"
    path.mkdir()
    with pytest.raises(ModelError) as raised:
        inspect(path)
    assert SHOWN in str(raised.value)
    assert is_plain(str(raised.value))
    assert is_plain(str(SourceUnreadableError(5, "cannot be read", NAME)))


def test_logs(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ort_qdq_plugin"):
        report = report_of(create_session(model))
    assert report is not None
    (record,) = caplog.records
    assert printable(model) in record.getMessage()
    assert is_plain(record.getMessage())


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--unfused"], ["warm", "--dir", "cache"]])
def test_commands(arguments: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, *flags = [str(tmp_path / part) if part == "cache" else part for part in arguments]
    done = Here(capsys)(command, model, *flags)
    assert is_plain(done.out + done.err)
    assert done.out


@pytest.mark.parametrize("arguments", [["inspect", f"/{NAME}"], [NAME], ["inspect", "x", f"--{NAME}"], ["warm", f"/{NAME}"]])
def test_complaints_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = Here(capsys)(*arguments)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert is_plain(done.err)


def test_what_a_program_did(model: Path) -> None:
    code = f"import onnxruntime; onnxruntime.InferenceSession({os.fspath(model)!r}, providers=['CPUExecutionProvider'])"
    done = apart("run", "--", sys.executable, "-c", code)
    assert done.code == 0
    assert printable(model) in done.err
    assert is_plain(done.err)
