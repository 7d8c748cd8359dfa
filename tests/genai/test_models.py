"""Models of onnxruntime-genai whose files, or whose entries of the cache, are replaced while they are loaded."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import ModelError, Options, QdqPluginError, StockReason, genai
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.genai import calls, models, prepared
from ort_qdq_plugin.genai.config import CONFIG_NAME, read_config
from ort_qdq_plugin.load.through_cache import entry_folder_through_cache
from ort_qdq_plugin.ort.keys import ACCURACY_KEY
from ort_qdq_plugin.report import RouteReason
from tests.cache.support import entries
from tests.genai.small_model import tokens, write_model
from tests.support import floating

og = pytest.importorskip("onnxruntime_genai")


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / name, seed) for seed, name in enumerate(("old", "new"))]


@pytest.fixture
def folder(versions: list[Path], tmp_path: Path) -> Path:
    """Where the old one is, until another one is `released`."""
    (tmp_path / "live").mkdir()
    return release(versions[0], tmp_path / "live")


def release(version: Path, folder: Path) -> Path:
    """Put a model where another one is, by renaming."""
    for path in version.iterdir():
        shutil.copy(path, folder / "copy")
        os.replace(folder / "copy", folder / path.name)
    return folder


def replace_entry(cache: Path) -> None:
    """Put a copy in the place of the only entry."""
    (entry,) = entries(cache)
    entry.rename(entry.with_name("old"))
    shutil.copytree(entry.with_name("old"), entry)


def before_models(monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], object]) -> list[int]:
    """Have each of these called before a native model is created; the numbers of those that were."""
    real, called = calls.create_stock_model, list[int]()

    def create(*args: Any) -> None:
        if len(called) < len(actions):
            called.append(len(called))
            actions[called[-1]]()
        real(*args)

    monkeypatch.setattr(models, "create_stock_model", create)
    return called


@pytest.mark.parametrize("shared", [False, True])
def test_it_computes_what_stock_does_and_says_what_was_copied(folder: Path, cache: Path, shared: bool) -> None:
    wanted = tokens(og.Model(str(folder)))
    before = {path: path.stat() for path in folder.iterdir()}
    reports = []
    for options in (Options(), *[Options(cache_dir=cache, share_weights=shared)] * 2):
        model = genai.load(folder, options=options)
        assert tokens(model) == wanted
        reports.append(genai.report_of(model)["model.onnx"])
    assert [(report.cache, "pack" in report.seconds) for report in reports] == [("", True), ("made", True), ("used", False)]
    assert [report.shared_bytes > 0 for report in reports] == [False, shared, shared]
    by_path, in_cache = ("by path", RouteReason.GENAI), ("shared", None) if shared else ("by path", RouteReason.GENAI)
    assert [(report.route, report.route_reason) for report in reports] == [by_path, in_cache, in_cache]
    (copied,) = {report.copied_bytes for report in reports}
    assert 0 < copied <= (folder / "model.onnx.data").stat().st_size
    after = {path: path.stat() for path in folder.iterdir()}
    assert [(one.st_nlink, one.st_ctime_ns) for one in after.values()] == [(1, one.st_ctime_ns) for one in before.values()]


def test_the_accuracy_level_holds_where_nothing_is_fused(folder: Path) -> None:
    """Then too ONNX Runtime may fuse something itself."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["model"]["decoder"]["session_options"]["graph_optimization_level"] = "ORT_DISABLE_ALL"
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    model = genai.load(folder, options=Options(accuracy_level=0))
    assert tokens(model) == tokens(og.Model(str(folder)))
    assert genai.report_of(model)["model.onnx"].stock_reason is StockReason.FUSION_DISABLED

    def said(level: int | None) -> str | None:
        made = prepared.new_state(str(folder), (), Options(accuracy_level=level))
        if made.folder is None:
            return None
        return str(read_config(made.folder.path)["model"]["decoder"]["session_options"][ACCURACY_KEY])

    assert (said(0), said(None)) == ("0", None)
    (folder / "model.onnx").write_bytes(floating().SerializeToString())
    assert said(0) is None  # nothing in it is quantized


def test_a_folder_may_be_given_as_bytes(folder: Path) -> None:
    assert genai.report_of(genai.load(os.fsencode(folder)))["model.onnx"].fused
    assert genai.report_of(genai.prepare(og.Config(os.fsencode(folder))))["model.onnx"].fused
    assert genai.report_of("no model") == {}


def test_reports_can_be_read(folder: Path) -> None:
    model = genai.load(folder)
    (report,) = genai.report_of(model).values()
    assert str(genai.report_of(model)) == f"model.onnx: {report}"
    assert genai.report_of(model) == {"model.onnx": report}
    assert str(genai.report_of(og.Model(str(folder)))) == "no reports"


def test_a_model_that_is_fused_already(folder: Path, cache: Path, tmp_path: Path) -> None:
    """Nothing is gained by a copy of it, unless processes share what ONNX Runtime makes of its weights."""
    fused = tmp_path / "fused"
    genai.export(folder, fused)
    wanted, shared = tokens(og.Model(str(fused))), Options(cache_dir=cache, share_weights=True)
    reports = []
    for options in (Options(), Options(cache_dir=cache), shared):
        model = genai.load(fused, options=options)
        assert tokens(model) == wanted
        reports.append(genai.report_of(model)["model.onnx"])
    assert [report.stock_reason for report in reports] == [StockReason.NOT_FUSIBLE] * 2 + [None]
    assert [report.copied_bytes > 0 for report in reports] == [False, False, True]
    assert "MatMulNBits" in reports[0].summary()
    assert reports[2].shared_bytes > 0


def test_an_object_that_has_opened_another_entry_is_not_used(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is the caller's own, it cannot be created once more."""
    genai.load(folder, options=Options(cache_dir=cache))

    before_models(monkeypatch, lambda: replace_entry(cache))
    models.activate(og, Options(cache_dir=cache))
    try:
        with pytest.raises(models.EntryReplacedError, match="load it again"):
            og.Model(str(folder))
        assert len(tokens(og.Model(str(folder)))) == 12
    finally:
        models.deactivate()


def test_a_configuration_whose_entry_was_replaced(folder: Path, cache: Path) -> None:
    config = genai.prepare(folder, options=Options(cache_dir=cache))
    replace_entry(cache)
    with pytest.raises(models.EntryReplacedError, match="prepare it again"):
        og.Model(config)


def test_entries_that_are_removed_again_and_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At last the model is prepared without the cache."""
    wanted = tokens(og.Model(str(folder)))

    def remove() -> None:
        wait_until_on_disk()  # nothing is added to the folder any more
        for entry in entries(cache):
            shutil.rmtree(entry)

    called = before_models(monkeypatch, remove, remove)
    model = genai.load(folder, options=Options(cache_dir=cache))
    assert called == [0, 1]
    assert tokens(model) == wanted
    assert genai.report_of(model)["model.onnx"].route == "by path"
    assert not entries(cache)


def no_directory(_: pytest.MonkeyPatch, cache: Path) -> None:
    cache.touch()


def no_room_for_the_manifest(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def commit(store: Any, *args: Any) -> Any:
        if store.folder == str(cache):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(store, *args)

    real = Store.commit
    monkeypatch.setattr(Store, "commit", commit)


@pytest.mark.parametrize("fault", [no_directory, no_room_for_the_manifest])
def test_where_the_cache_fails_loading_does_not(
    folder: Path, cache: Path, fault: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = tokens(og.Model(str(folder)))
    fault(monkeypatch, cache)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        model = genai.load(folder, options=Options(cache_dir=cache, share_weights=True))
    (record,) = caplog.records
    assert "without the cache" in record.message
    assert tokens(model) == wanted
    assert genai.report_of(model)["model.onnx"].route == "by path"
    with pytest.raises((QdqPluginError, OSError)):
        genai.warm(folder, options=Options(cache_dir=cache))


def test_files_that_are_replaced_between_one_and_the_next(
    versions: list[Path], folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is one model."""
    real, seen = entry_folder_through_cache, list[str]()

    def prepare(*args: Any) -> Any:
        found = real(*args)
        seen.append(found.model)
        if len(seen) == 1:
            release(versions[1], folder)
        return found

    monkeypatch.setattr(prepared, "entry_folder_through_cache", prepare)
    model = genai.load(folder, options=Options(cache_dir=cache))
    assert len(seen) == 2
    assert tokens(model) == tokens(og.Model(str(versions[1])))


def test_what_is_wrong_with_a_folder_is_a_note(folder: Path) -> None:
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    file = folder / "model.onnx"
    for given, problem in ((folder, "a Git LFS pointer"), (file, "a file, not a folder"), (folder / "gone", "No such file")):
        with pytest.raises(Exception) as loading:  # noqa: PT011  # whatever onnxruntime-genai raises
            genai.load(given)
        with pytest.raises(Exception) as preparing:  # noqa: PT011
            og.Model(genai.prepare(given))
        assert all(problem in raised.value.__notes__[0] for raised in (loading, preparing))


def test_warming_what_cannot_be_opened_raises(folder: Path, tmp_path: Path) -> None:
    options = Options(cache_dir=tmp_path / "cache")
    with pytest.raises(NotADirectoryError, match="a file, not a folder of onnxruntime-genai"):
        genai.warm(folder / "model.onnx", options=options)
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        genai.warm(folder, options=options)
    (folder / CONFIG_NAME).write_text('{"model": {}}')
    with pytest.raises(ModelError, match=r"genai_config\.json: it names no \.onnx file"):
        genai.warm(folder, options=options)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=r"a folder without a genai_config\.json"):
        genai.warm(folder, options=options)
