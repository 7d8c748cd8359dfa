"""platforms.md: releases, installing and containers. What was tried where is measured, by the commands that it names."""

import errno
import re
import sys
import tomllib
from pathlib import Path

import onnxruntime as ort
import pytest

from conformance import tolerances
from conformance.claims import MODELS
from conformance.patterns.catalogue import PATTERNS
from conformance.platforms.contained import CONTAINERS
from ort_qdq_plugin import Options, StockReason, create_session
from ort_qdq_plugin.model import releases
from ort_qdq_plugin.ort import installed, release
from ort_qdq_plugin.system.platform import files, host
from tests.claims.pages import rows_below, text_of
from tests.claims.registry import claim
from tests.support import CPU, IN_PLACE, ROOT, added_provider, made_report, quiet, refuse

PAGE = "docs/platforms.md"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@claim(PAGE, "ONNX Runtime 1.28 to 1.32 are supported.")
@claim(PAGE, "- **Newer ones** than 1.32 are tried out when the first quantized model is loaded,")
def test_releases() -> None:
    assert (releases.OLDEST, releases.NEWEST) == ((1, 28), (1, 32))
    told = [
        row[0] for row in rows_below(PAGE, "| release | fused | route | stock's peak | peak | from the cache | identical |")
    ]
    tried = [tuple(map(int, name.split(".")[:2])) for name in told if name[0].isdigit()]
    assert [number for number in tried if number >= releases.OLDEST] == [(1, minor) for minor in range(28, 33)]


@claim(
    PAGE,
    "- **Older ones**, onnxruntime-openvino among them, step aside: stock ONNX Runtime loads all models, and each",
)
@claim("docs/troubleshooting.md", "there is one warning in each process |")
def test_older_releases(small: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ort, "__version__", "1.27.0")
    release._problem_of.cache_clear()
    reports = [made_report(create_session(small, quiet(), CPU)) for _ in range(2)]
    release._problem_of.cache_clear()
    assert [report.stock_reason for report in reports] == [StockReason.RELEASE] * 2
    (record,) = caplog.records
    assert "1.27.0 is older than 1.28" in record.getMessage()


@claim(PAGE, "Of the 685 patterns, 505 are fused, all of them right.")
@claim(PAGE, "so no graph with fused nodes: 540 of the 685 patterns, all of them right")
@claim(PAGE, "| `conformance.claims` | 110 of 110 pass |")
def test_how_many_there_are() -> None:
    assert (len(PATTERNS), len(MODELS)) == (685, 110)


@claim(PAGE, "Tests allow them 2e-2 instead of 2e-3 (`conformance/tolerances.py`).")
def test_tolerances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerances, "KEEPS_FLOAT16", False)
    for is_arm, largest in ((True, 2e-2), (False, 2e-3)):
        monkeypatch.setattr(host, "is_arm", lambda is_arm=is_arm: is_arm)
        assert tolerances.largest_error("float16", 0) == largest


@claim(
    PAGE,
    "| no ONNX Runtime | `pip install 'ort-qdq-plugin[cpu]'`, which also brings onnxruntime-extensions where it has a",
)
@claim(PAGE, "So this package requires none of them, only onnx and NumPy.")
def test_what_is_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split("[>=]", need)[0] for need in project["dependencies"]] == ["onnx", "numpy"]
    assert [re.split("[>=]", need)[0] for need in EXTRAS["cpu"]] == ["onnxruntime", "onnxruntime-extensions"]


@claim(
    PAGE, "\"ONNX Runtime is not installed: pip install 'ort-qdq-plugin[cpu]', or a build of it such as onnxruntime-gpu\""
)
@claim(
    PAGE,
    '"onnxruntime and onnxruntime-openvino are installed over each other, so that parts of each are missing: pip',
)
@claim(PAGE, '"onnxruntime-openvino cannot be imported (...): pip install --force-reinstall --no-deps')
def test_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = re.findall(r'"((?:ONNX|onnx)[^"|]*: pip [^"|]*)"', text_of(PAGE))
    said = {text.replace("...", "why") for text in quoted}
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing, broken = ModuleNotFoundError("", name="onnxruntime"), ImportError("why", name="onnxruntime")
    told = [installed.explained(missing)]
    for builds in (["onnxruntime_openvino"], ["onnxruntime", "onnxruntime_openvino"]):
        for build in builds:
            (tmp_path / f"{build}-1.0.dist-info").mkdir(exist_ok=True)
            (tmp_path / f"{build}-1.0.dist-info" / "RECORD").write_text("onnxruntime/__init__.py,,\n")
        told.append(installed.explained(broken))
    assert said == {*told}


@claim(
    PAGE,
    "OSError: packed weights need a file with a name here: ...`:",
)
@claim(PAGE, "Where none was, and no file can be made anywhere, packing into memory is nothing to warn of.")
def test_warnings_in_containers(large: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    refuse(monkeypatch, files, "open_unnamed", errno.EROFS)
    assert len(made_report(create_session(large, quiet(), CPU)).fused) == 3
    if releases.has(releases.LENT_FILES):
        assert caplog.records == []
    refuse(monkeypatch, files, "create", errno.EROFS)
    caplog.clear()
    assert made_report(create_session(large, added_provider())).route == "stock"
    (record,) = caplog.records
    assert record.getMessage().startswith("loading with stock ONNX Runtime, without ")
    assert "OSError: packed weights need a file with a name here: " in record.getMessage()


@IN_PLACE
@claim(PAGE, "5. `weights are not shared between processes: ONNX Runtime opens no files by path without /proc`.")
def test_shared_weights_without_proc(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host, "opens_by_path", lambda: False)
    options = Options(strict=True, cache_dir=tmp_path, share_weights=True)
    assert made_report(create_session(small, quiet(), CPU, options=options)).route == "borrowed"
    assert [record.getMessage() for record in caplog.records] == [
        "weights are not shared between processes: ONNX Runtime opens no files by path without /proc"
    ]


@claim(PAGE, "| container | plain load, bytes | by path | cache | shared weights |")
def test_containers() -> None:
    rows = rows_below(PAGE, "| container | plain load, bytes | by path | cache | shared weights |")
    assert len(rows) == len(CONTAINERS)


@claim("docs/stability.md", "| Python | 3.11 to 3.14;")
@claim("docs/stability.md", "| ONNX Runtime | 1.28 and newer;")
@claim("docs/stability.md", "| onnxruntime-genai | 0.18 and newer, for `ort_qdq_plugin.genai` |")
def test_what_is_supported() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    pythons = re.findall(r"Python :: (3\.\d+)", " ".join(classifiers))
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert f"python: {str(pythons).replace(chr(39), chr(34))}" in workflow
    assert (EXTRAS["cpu"][0], EXTRAS["genai"]) == ("onnxruntime>=1.28", ["onnxruntime-genai>=0.18"])
