"""Entries that ONNX Runtime opens by path, and that are replaced or removed at the worst moment: what a load gives is of one
model, the old one or the new one."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.ort import hook
from tests.cache.support import digest_of_results, entries, load, saved
from tests.support import ROUTE_IN_MEMORY, made_report, settled_descriptors, stack

SHARED: dict[str, Any] = {"share_weights": True}


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    """Two models of one shape, which differ in their graphs and in their weights."""
    old, new = (stack(2, 256, seed=seed, n_major=True) for seed in ("old", "new"))
    for node in new.graph.node:
        if node.op_type == "Tanh":
            node.op_type = "Sigmoid"
    return [saved(model, tmp_path / seed) for seed, model in (("old", old), ("new", new))]


@pytest.fixture
def path(versions: list[Path], tmp_path: Path) -> Path:
    """Where the old one is, until it is `released`."""
    (tmp_path / "live").mkdir()
    return release(versions[0], tmp_path / "live" / "model.onnx")


def release(version: Path, path: Path) -> Path:
    """Put a model where another one is, by renaming."""
    for name in ("model.data", "model.onnx"):
        shutil.copy(version.with_name(name), path.with_name("copy"))
        os.replace(path.with_name("copy"), path.with_name(name))
    return path


def before_sessions(monkeypatch: pytest.MonkeyPatch, *calls: Callable[[], object]) -> list[int]:
    """Have each of these called before a native session is created; the numbers of those that were."""
    real, called = hook.create_stock, list[int]()

    def create(*args: Any) -> None:
        if len(called) < len(calls):
            called.append(len(called))
            calls[called[-1]]()
        real(*args)

    monkeypatch.setattr(hook, "create_stock", create)
    return called


@pytest.mark.parametrize("verify", ["stat", "content"])
@pytest.mark.parametrize("way", ["made", "used"])
@pytest.mark.needs("free names")
def test_an_entry_that_is_replaced_while_it_is_opened(
    versions: list[Path], path: Path, cache: Path, way: str, verify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one of the new model: ONNX Runtime would have the old model with the new model's weights.

    What was packed is used instead.
    """
    wanted = [load(version, None).digest for version in versions]
    if way == "used":
        load(path, cache, verify=verify, **SHARED)

    def replace() -> None:
        (entry,) = entries(cache)
        release(versions[1], path)
        assert load(path, cache, verify=verify, **SHARED).digest == wanted[1]
        (new,) = set(entries(cache)) - {entry}
        entry.rename(entry.with_name("old"))
        shutil.copytree(new, entry)

    called = before_sessions(monkeypatch, replace)
    loaded = load(path, cache, verify=verify, **SHARED)
    assert called == [0]
    assert loaded.digest == wanted[way == "used"]
    assert (loaded.report.route, loaded.report.cache) == (("shared", "used") if way == "used" else (ROUTE_IN_MEMORY, ""))


def test_a_model_that_is_replaced_while_its_entry_is_opened(
    versions: list[Path], path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry has all of the old one."""
    wanted = load(path, None).digest
    load(path, cache, **SHARED)
    called = before_sessions(monkeypatch, lambda: release(versions[1], path))
    assert load(path, cache, **SHARED).digest == wanted
    assert called == [0]


def test_files_that_are_replaced_between_the_look_at_them_and_their_use(
    versions: list[Path], path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that are used where they are stored are not in the entry."""
    load(path, cache)
    wanted, real = load(versions[1], None).digest, Store.find

    def find(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        monkeypatch.undo()
        release(versions[1], path)
        return found

    monkeypatch.setattr(Store, "find", find)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(path, cache)
    assert (loaded.digest, loaded.report.cache) == (wanted, "made")
    assert not caplog.records


def test_entries_that_are_removed_again_and_again(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At last the model is loaded without the cache."""
    wanted = load(path, None).digest

    def remove() -> None:
        wait_until_on_disk()  # nothing is added to the folder any more
        for entry in entries(cache):
            shutil.rmtree(entry)

    called = before_sessions(monkeypatch, remove, remove)
    before = settled_descriptors()
    loaded = load(path, cache, **SHARED)
    assert called == [0, 1]
    assert (loaded.report.route, loaded.report.cache, loaded.digest) == (ROUTE_IN_MEMORY, "", wanted)
    assert settled_descriptors() <= before


def test_errors_of_onnx_runtime_are_not_tried_again(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(path, cache, **SHARED)

    def fail() -> None:
        raise OSError("no")

    called = before_sessions(monkeypatch, fail)
    loaded = load(path, cache, **SHARED)
    assert called == [0]
    assert loaded.report.stock_detail == "OSError: no"


@pytest.mark.needs("free names")
def test_other_providers_find_the_entry_gone(path: Path, cache: Path) -> None:
    session = create_session(str(path), options=Options(cache_dir=cache, **SHARED))
    before = digest_of_results(session)
    (entry,) = entries(cache)
    wait_until_on_disk()
    shutil.rmtree(entry)
    session.set_providers(["CPUExecutionProvider"])
    assert digest_of_results(session) == before
    assert made_report(session).cache == "made"
