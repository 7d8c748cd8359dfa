"""command-line.md: `warm`, `cache`, `prepare` and `demo`."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cli import demo
from tests.claims.registry import claim
from tests.cli.support import Here
from tests.genai import small_model
from tests.support import CPU, made_report, quiet

PAGE = "docs/command-line.md"
VARIABLE = "ORT_QDQ_PLUGIN_CACHE_DIR"


def used(model: str, cache: Path, **options: object) -> bool:
    session = create_session(model, quiet(), CPU, options=Options(cache_dir=cache, **options))  # type: ignore[arg-type]
    return made_report(session).cache == "used"


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


@claim(
    PAGE,
    "(options.md#environment-variables) gives, and waits until it is on the disk;",
)
@claim(PAGE, "The directory is `--dir`, or `ORT_QDQ_PLUGIN_CACHE_DIR`.")
def test_warm(small: str, mixed_model: str, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_QDQ_PLUGIN_ACCURACY_LEVEL", "1")
    here.said("warm", small, "--dir", tmp_path / "given")
    assert (entries(tmp_path / "given")[0] / "on-disk").exists()
    assert used(small, tmp_path / "given", accuracy_level=1)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "named"))
    here.said("warm", mixed_model)
    here.said("warm", small, "--dir", tmp_path / "given")
    assert (len(entries(tmp_path / "named")), len(entries(tmp_path / "given"))) == (1, 1)
    monkeypatch.delenv(VARIABLE)
    assert VARIABLE in here.refused("warm", small)


@claim(PAGE, "of a folder with a `genai_config.json`, all models that it names, as")
def test_warm_of_a_folder(tmp_path: Path, here: Here) -> None:
    folder = small_model.write_model(tmp_path / "llama")
    here.said("warm", folder, "--dir", tmp_path / "cache")
    (entry,) = entries(tmp_path / "cache")
    assert (entry / "data.bin").exists()


@pytest.fixture
def cache(small: str, mixed_model: str, tmp_path: Path, here: Here) -> Path:
    """A cache with two entries, the first of which has been used."""
    for model in (small, mixed_model):
        here.said("warm", model, "--dir", tmp_path / "cache")
    assert used(small, tmp_path / "cache")
    return tmp_path / "cache"


def hits(items: list[dict[str, Any]]) -> dict[str, int]:
    return {item["model"]: item["stored"]["hits"] for item in items}


def entry_of(model: str, cache: Path) -> Path:
    return next(entry for entry in entries(cache) if model in (entry / "manifest.json").read_text())


@claim(
    PAGE,
    "| `cache list` | sizes, ages, how many loads found each entry",
)
def test_list(cache: Path, small: str, mixed_model: str, here: Here) -> None:
    (entry_of(mixed_model, cache) / "more").touch()
    said = here.said("cache", "list", "--dir", cache)
    lines = {line.split()[-1]: line.split() for line in said.splitlines()}
    assert lines[small][-2] == "ready"
    assert "unusable" in lines[mixed_model]
    assert "it has not the files that it should have" in said
    plain = json.loads(here.said("cache", "list", "--dir", cache, "--json"))
    assert used(small, cache)
    again = json.loads(here.said("cache", "list", "--dir", cache, "--json"))
    assert hits(again)[small] == hits(plain)[small] + 1 == int(lines[small][-3]) + 1
    assert {item["model"]: bool(item["problem"]) for item in plain} == {small: False, mixed_model: True}
    assert all(item["stored"]["nbytes"] > 0 for item in plain)


@claim(PAGE, '(`verify="content"`); exit code 1 if an entry cannot be used |')
def test_verify(cache: Path, small: str, here: Here) -> None:
    here.said("cache", "verify", "--dir", cache)
    (entry_of(small, cache) / "more").touch()
    here.said("cache", "list", "--dir", cache)
    here.said("cache", "verify", "--dir", cache, code=1)


@claim(PAGE, "| `cache prune` | removes what cannot be used, and what killed processes left")
@claim(PAGE, "with `--max-bytes N` also what was not used for the longest time |")
def test_prune(cache: Path, small: str, mixed_model: str, large: str, here: Here) -> None:
    here.said("warm", large, "--dir", cache)
    kept, broken = entry_of(small, cache), entry_of(mixed_model, cache)
    (broken / "more").touch()
    unfinished = cache / f"{broken.name}.0123456789abcdef.tmp"
    unfinished.mkdir()
    here.said("cache", "prune", "--dir", cache, "--yes")
    assert (broken.exists(), unfinished.exists(), len(entries(cache))) == (False, False, 2)
    os.utime(f"{entry_of(large, cache)}.lock", (1000, 1000))
    here.said("cache", "prune", "--dir", cache, "--max-bytes", "1000000", "--yes")
    assert entries(cache) == [kept]


@claim(PAGE, "| `cache clear` | removes all entries |")
@claim(PAGE, "`prune` and `clear` ask before they remove anything, unless there is `--yes`.")
@claim(PAGE, "Entries in use stay, and so do other files in the directory.")
def test_clear(cache: Path, small: str, here: Here) -> None:
    (cache / "mine").touch()
    session = create_session(small, quiet(), CPU, options=Options(cache_dir=cache))
    asked = here("cache", "clear", "--dir", cache)
    assert (asked.code, "--yes" in asked.err) == (2, True)
    assert len(entries(cache)) == 2
    here.said("cache", "clear", "--dir", cache, "--yes")
    assert entries(cache) == [entry_of(small, cache)]
    del session
    here.said("cache", "clear", "--dir", cache, "--yes")
    assert [path.name for path in cache.iterdir()] == ["mine"]


@claim(PAGE, "`--share-weights` adds ONNX Runtime's pre-packed weights.")
def test_prepare(small: str, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_QDQ_PLUGIN_ACCURACY_LEVEL", "0")
    here.said("prepare", small, tmp_path / "prepared", "--share-weights")
    options = Options(prepared=tmp_path / "prepared", share_weights=True, accuracy_level=0, strict=True)
    report = made_report(create_session(small, quiet(), CPU, options=options))
    assert (report.route, report.cache) == ("shared", "prepared")


@claim(PAGE, "`python -m ort_qdq_plugin` compares stock ONNX Runtime and this package on two small models")
def test_demo(monkeypatch: pytest.MonkeyPatch, here: Here) -> None:
    monkeypatch.setattr(demo, "run", lambda _: 42)
    monkeypatch.setattr("sys.argv", ["ort_qdq_plugin"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ort_qdq_plugin", run_name="__main__")
    assert (ended.value.code, len(demo._ORDERS)) == (42, 2)
