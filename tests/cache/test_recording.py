"""Entries that cannot be completed: the load goes on with what was packed, and one warning says why nothing is kept."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, QdqPluginError, warm
from ort_qdq_plugin.cache import store as store_module
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.cache.writer import EntryWriter
from ort_qdq_plugin.load import pack as pack_stage
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.packing import pack as packing
from ort_qdq_plugin.system.platform import files
from ort_qdq_plugin.system.threads import Work
from tests.cache.support import Loaded, digest_of_results, entries, leftovers, load, saved
from tests.support import ROUTE, ROUTE_IN_MEMORY, refuse, stack, stock

Act = Callable[[Path], object]


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Act, model: Path) -> None:
    """Have something happen once, between opening a model and packing it."""
    real = EntryWriter.make_buffers

    def make_buffers(*args: Any) -> Any:
        monkeypatch.undo()
        act(model)
        return real(*args)

    monkeypatch.setattr(EntryWriter, "make_buffers", make_buffers)


# ---- what is no change of the model


def mode_set(model: Path) -> None:
    model.with_name("model.data").chmod(0o640)


def backed_up(model: Path) -> None:
    os.link(model.with_name("model.data"), model.with_name("backup"))


def link_renamed(model: Path) -> None:
    backed_up(model)
    model.with_name("backup").rename(model.with_name("older"))


def in_another_cache(model: Path) -> None:
    load(model, model.parent.parent / "other", share_weights=True)


@pytest.mark.parametrize("act", [mode_set, backed_up, link_renamed, in_another_cache])
@pytest.mark.parametrize("n_major", [False, True])
def test_what_is_no_change_of_the_model(
    tmp_path: Path,
    cache: Path,
    act: Act,
    n_major: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = saved(stack(3, 256, n_major=n_major), tmp_path / "model")
    wanted = load(model, None).digest
    meanwhile(monkeypatch, act, model)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(model, cache)
    assert (loaded.report.route, loaded.report.cache, loaded.digest) == (ROUTE, "made", wanted)
    assert load(model, cache).report.cache == "used"
    assert not caplog.records


# ---- what keeps an entry from being completed


def model_replaced(model: Path) -> None:
    shutil.copy(model, model.with_name("new"))
    os.replace(model.with_name("new"), model)


def data_replaced(model: Path) -> None:
    shutil.copy(model.with_name("model.data"), model.with_name("new"))
    os.replace(model.with_name("new"), model.with_name("model.data"))


def data_removed(model: Path) -> None:
    model.with_name("model.data").rename(model.with_name("elsewhere"))


@pytest.mark.parametrize(
    "act",
    [
        *(pytest.param(act, marks=pytest.mark.needs("free names")) for act in (model_replaced, data_replaced)),
        pytest.param(data_removed, marks=pytest.mark.needs("renamed files")),
    ],
)
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("n_major", [False, True])
def test_files_that_are_replaced_while_they_are_packed(
    tmp_path: Path,
    cache: Path,
    act: Act,
    share: bool,
    n_major: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was opened is packed."""
    model = saved(stack(3, 256, n_major=n_major), tmp_path / "model")
    wanted = load(model, None).digest
    meanwhile(monkeypatch, act, model)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(model, cache, share_weights=share)
    assert (loaded.report.route, loaded.report.cache, loaded.digest) == (ROUTE_IN_MEMORY, "", wanted)
    (record,) = caplog.records
    assert "not kept in the cache" in record.message
    assert (str(model) if act is model_replaced else str(model.with_name("model.data"))) in record.message
    assert not entries(cache)
    assert not leftovers(cache)
    if act is not data_removed:
        assert load(model, cache, share_weights=share).report.cache == "made"


def no_room_for_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, store_module, "write_file", errno.ENOSPC)


def no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "rename", errno.ENOSPC)


def a_manifest_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError(os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ort_qdq_plugin.cache.manifest.Manifest.to_bytes", fail)


def no_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "chmod", errno.ENOSPC)


@pytest.mark.parametrize(
    ("fault", "share"),
    [
        (no_room_for_the_manifest, False),
        pytest.param(no_name, False, marks=pytest.mark.needs("free names")),
        (a_manifest_that_cannot_be_written, False),
        pytest.param(no_modes, True, marks=pytest.mark.needs("modes")),
    ],
)
def test_whatever_fails_costs_only_the_entry(
    model: Path, cache: Path, fault: Any, share: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, options = load(model, None).digest, Options(cache_dir=cache, share_weights=share)
    fault(monkeypatch)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(model, cache, share_weights=share)
    assert (loaded.report.route, loaded.report.cache, loaded.digest) == (ROUTE_IN_MEMORY, "", wanted)
    (record,) = caplog.records
    assert "not kept in the cache" in record.message
    assert os.strerror(errno.ENOSPC) in record.message
    with pytest.raises((QdqPluginError, OSError), match=os.strerror(errno.ENOSPC)):
        warm(model, options=options)
    assert not entries(cache)
    # Where files that are mapped cannot be removed, the next load does it.
    assert not leftovers(cache) or not files.SHARES_FREELY


def test_weights_that_change_while_they_are_packed_are_not_used(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(path: Path) -> None:
        os.utime(path.with_name("model.data"), (0, 0))

    meanwhile(monkeypatch, touch, model)
    loaded = load(model, cache)
    assert (loaded.report.route, "changed" in loaded.report.stock_detail) == ("stock", True)
    assert not entries(cache)


# ---- bringing an entry to the disk


@pytest.mark.parametrize("when", ["before the session", "at any moment"])
@pytest.mark.parametrize("share", [False, True])
def test_a_disk_that_refuses_an_entry(
    model: Path, cache: Path, share: bool, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it says so, what was packed is used: nothing is packed again."""
    wanted, packs, real = load(model, None).digest, list[int](), packing.pack

    def counted(*arguments: Any) -> None:
        packs.append(len(packs))
        real(*arguments)

    def create(*arguments: Any) -> None:
        if when == "before the session":
            wait_until_on_disk()
        create_stock(*arguments)

    create_stock = hook.create_stock
    monkeypatch.setattr(hook, "create_stock", create)
    monkeypatch.setattr(pack_stage, "pack", counted)
    refuse(monkeypatch, os, "fsync", errno.EIO)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(model, cache, share_weights=share)
        wait_until_on_disk()
    assert (loaded.report.route in (ROUTE, ROUTE_IN_MEMORY, "shared"), loaded.digest, packs) == (True, wanted, [0])
    if share and when == "before the session":
        assert (loaded.report.route, loaded.report.cache, loaded.report.shared_bytes) == (ROUTE_IN_MEMORY, "", 0)
    assert ["cannot be written to the disk" in record.message for record in caplog.records] == [True]
    assert not entries(cache)


@pytest.mark.parametrize("problem", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
@pytest.mark.parametrize("share", [False, True])
def test_a_system_that_brings_nothing_to_the_disk(
    model: Path, cache: Path, problem: int, share: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it is started again, entries are as good as any."""
    refuse(monkeypatch, os, "fsync", problem)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        first = load(model, cache, share_weights=share)
        wait_until_on_disk()
        second = load(model, cache, share_weights=share)
    assert [one.report.cache for one in (first, second)] == ["made", "used"]
    assert not caplog.records
    assert not (entries(cache)[0] / "on-disk").exists()


def test_no_thread_to_bring_it_to_the_disk(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Work, "start", start)
    assert load(model, cache).report.cache == "made"
    assert (entries(cache)[0] / "on-disk").exists()
    assert load(model, cache).report.cache == "used"


def test_a_signal_handler_loads_the_model_while_its_entry_is_made(
    model: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handled = list[Loaded]()

    def meanwhile(*_: object) -> None:
        if not handled:
            handled.append(load(model, cache))

    first = load(model, cache, progress=meanwhile, threads=1)
    assert (first.report.cache, handled[0].report.cache) == ("made", "")
    assert handled[0].digest == first.digest
    assert ["without the cache" in record.message for record in caplog.records] == [True]


# ---- names


@pytest.mark.parametrize("name", ["weight", "product", "node", "between", "dequantized"])
def test_names_that_are_no_utf_8(tmp_path: Path, cache: Path, name: str) -> None:
    """ONNX Runtime does not mind them."""
    draft = Draft("names")
    draft.weight(Weight(k=128, n=128), "weight")
    draft.nodes[-1].output[0] = "dequantized"
    draft.input("x", ["m", 128])
    draft.node("Tanh", ["x"], "between")
    draft.node("MatMul", ["between", "dequantized"], "product")
    draft.nodes[-1].name = "node"
    draft.node("Tanh", ["product"], "y")
    draft.output("y", ["m", 128])
    model = saved(draft.model(), tmp_path / "model", "file")
    model.write_bytes(model.read_bytes().replace(name.encode(), b"\xff" * len(name)))
    with_stock = digest_of_results(stock(str(model)))
    loaded = [load(model, None), *(load(model, cache) for _ in range(2))]
    assert {one.digest for one in loaded} == {with_stock}
    assert [one.report.cache for one in loaded] == ["", "made", "used"]
    for one in loaded:
        assert len(one.report.fused) == 1
        json.dumps(one.report.to_dict())
