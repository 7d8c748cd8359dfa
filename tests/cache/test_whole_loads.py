"""Loads through the cache, as their callers see them."""

import errno
import gc
import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conformance.drawing.draft import Draft
from ort_qdq_plugin import Options, StockReason, create_session, warm
from ort_qdq_plugin.cache import store as store_module
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.keys import PARALLEL_KEY, config_entry
from ort_qdq_plugin.system.platform import files
from tests.cache.support import (
    KEY,
    digest_of_results,
    entries,
    leftovers,
    load,
    loading,
    outcome_of,
    saved,
    without_locks,
    written_back,
)
from tests.model.test_glance import product
from tests.support import (
    CPU,
    IN_PLACE,
    ROUTE,
    Form,
    added_provider,
    made_report,
    mapped,
    python,
    result,
    settled_descriptors,
    stack,
    stock,
    unquantized,
    with_entries,
)

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "K-major": lambda: stack(3, 256),
    "N-major, in place": lambda: stack(3, 256, n_major=True),
    "signed": lambda: stack(2, 128, element="int4", zero="none"),
    "8 bits": lambda: stack(2, 128, element="uint8"),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("form", ["file", "external"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_load_gives_the_same(kind: str, form: Form, shared: bool, tmp_path: Path, cache: Path) -> None:
    path = saved(MODELS[kind](), tmp_path / "model", form)
    without = load(path, None)
    first, *later = (load(path, cache, share_weights=shared) for _ in range(3))
    assert [one.report.cache for one in (without, first, *later)] == ["", "made", "used", "used"]
    assert {one.report.route for one in (first, *later)} == {"shared" if shared else ROUTE}
    assert {one.digest for one in (first, *later)} == {without.digest}
    assert len({one.report.shared_bytes for one in (first, *later)}) == 1
    assert (first.report.shared_bytes > 0, first.report.seconds.get("share", 0) > 0) == (shared, shared)
    assert all(one.report.fused == without.report.fused for one in later)
    assert all(one.report.packed_bytes == without.report.packed_bytes for one in later)
    assert not leftovers(cache)
    assert all(one.stat().st_nlink == 1 for one in path.parent.iterdir())
    (entry,) = entries(cache)
    if shared:
        # Nothing else is needed then, and stock ONNX Runtime opens the entry by path.
        assert (first.report.copied_bytes > 0) == kind.startswith("N-major")
        path.parent.rename(tmp_path / "elsewhere")
        for name in ("model.onnx", "model-shared.onnx"):
            assert digest_of_results(stock(str(entry / name))) == without.digest
    else:
        assert first.report.copied_bytes == 0


def test_a_warm_load_imports_nothing_heavy(model: Path, cache: Path) -> None:
    load(model, cache)
    code = """
import sys
import onnxruntime
before = {*sys.modules} - {"onnx", "google"}
from ort_qdq_plugin import Options, create_session, report_of
session = create_session(sys.argv[1], options=Options(cache_dir=sys.argv[2]))
assert report_of(session).cache == "used"
print(*{*sys.modules} - before)
"""
    done = python(code, model, cache)
    assert done.returncode == 0, done.stderr
    heavy = ["onnx", "google", "subprocess", *(f"ort_qdq_plugin.{name}" for name in ("load.prepare", "fusion", "packing"))]
    assert not [name for name in done.stdout.split() if f"{name}.".startswith(tuple(f"{one}." for one in heavy))]


def test_that_nothing_can_be_fused_is_remembered(tmp_path: Path, cache: Path) -> None:
    """Where it takes more than a glance to see it."""
    draft = Draft("nothing")
    draft.input("x", ["m", 128])
    draft.output("y", ["m", 128])
    draft.node("Add", ["x", draft.output(draft.dequantize("w", (1, 128), axis=1, block_size=32), [1, 128])], "y")
    path = saved(draft.model(), tmp_path / "model", "file")
    made, used = (load(path, cache).report for _ in range(2))
    assert (made.cache, used.cache) == ("", "used")
    assert (made.stock_reason, made.unfused) == (StockReason.NOT_FUSIBLE, used.unfused)
    assert used.unfused


@pytest.mark.parametrize("model", [product, unquantized])
@pytest.mark.parametrize("filled", [False, True])
def test_nothing_of_the_cache_is_used_where_a_glance_suffices(
    model: Callable[[], onnx.ModelProto], tmp_path: Path, cache: Path, filled: bool
) -> None:
    path = saved(model(), tmp_path / "model", "file")
    if filled:
        load(saved(stack(1, 128), tmp_path / "other"), cache)
    code = """
import sys
import onnxruntime
from ort_qdq_plugin import Options, create_session, report_of
session = create_session(sys.argv[1], options=Options(cache_dir=sys.argv[2]))
assert report_of(session).route == "stock"
print(*sys.modules)
"""
    done = python(code, path, cache)
    assert done.returncode == 0, done.stderr
    imported = [name for name in done.stdout.split() if name.startswith("ort_qdq_plugin.cache")]
    assert imported == (["ort_qdq_plugin.cache", "ort_qdq_plugin.cache.key"] if filled else [])
    assert not {"hashlib", "json", "shutil", "logging"} & set(done.stdout.split())
    assert len(entries(cache)) == 1 if filled else not cache.exists()


def test_a_model_that_is_not_there(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ONNX Runtime says so, and nobody else."""
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"), pytest.raises(Exception, match="missing"):
        load(tmp_path / "missing.onnx", cache)
    assert not caplog.records


def test_levels_have_entries_of_their_own_and_stay_valid(tmp_path: Path, cache: Path) -> None:
    path = saved(MODELS["N-major, in place"](), tmp_path / "model")
    for _ in range(2):
        for level in (0, 4):
            load(path, cache, accuracy_level=level)
    assert [load(path, cache, accuracy_level=level).report.cache for level in (0, 4, 0, 4)] == ["used"] * 4
    assert len(entries(cache)) == 2


# ---- what the cache cannot help


def test_models_as_bytes_and_added_providers_do_without(model: Path, cache: Path, tmp_path: Path) -> None:
    inline = saved(stack(1, 256), tmp_path / "inline", "file")
    options = Options(cache_dir=cache, spill_dir=tmp_path)
    assert made_report(create_session(inline.read_bytes(), options=options)).cache == ""
    for _ in range(2):
        by_path = made_report(create_session(str(model), added_provider(), options=options))
        assert (by_path.route, by_path.cache) == ("by path", "")
        load(model, cache)


def test_a_file_system_without_locks(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    assert [load(model, cache).report.cache for _ in range(2)] == ["made", "used"]


def refused_there(monkeypatch: pytest.MonkeyPatch, cache: Path, module: Any, name: str, problem: int) -> None:
    """This call fails for files in the cache."""
    real = getattr(module, name)

    def call(file: Any, *args: Any, **options: Any) -> Any:
        descriptor = file if isinstance(file, int) else file.fileno()
        if descriptor >= 0 and str(cache) in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(problem, os.strerror(problem))
        return real(file, *args, **options)

    monkeypatch.setattr(module, name, call)


def full(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    refused_there(monkeypatch, cache, files, "reserve", errno.ENOSPC)


def unmappable(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    refused_there(monkeypatch, cache, mmap, "mmap", errno.ENODEV)


def a_file(_: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("not a directory")


def busy(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(files, "try_lock", lambda _: False)


def open_to_all(_: pytest.MonkeyPatch, cache: Path) -> None:
    cache.mkdir(0o700)
    cache.chmod(0o777)


def fifo_in_place_of_a_lock(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    cache.mkdir(0o700)
    monkeypatch.setattr("ort_qdq_plugin.load.through_cache.key_of", lambda _: KEY)
    os.mkfifo(cache / f"{KEY}.lock")


@pytest.mark.parametrize("fault", [
    full, unmappable, a_file, busy, pytest.param(open_to_all, marks=pytest.mark.needs("modes")), fifo_in_place_of_a_lock,
])  # fmt: skip
def test_where_the_cache_fails_loading_does_not(
    model: Path, cache: Path, fault: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = load(model, None).digest
    fault(monkeypatch, cache)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(model, cache)
    assert (loaded.report.route, loaded.report.cache, loaded.digest) == (ROUTE, "", wanted)
    (record,) = caplog.records
    assert "without the cache" in record.message
    assert repr(str(cache))[1:-1] in record.message or fault in (full, unmappable)
    monkeypatch.undo()
    assert not cache.is_dir() or not leftovers(cache)


def test_an_interrupt_while_packing_leaves_nothing(model: Path, cache: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_session(str(model), options=Options(cache_dir=cache, progress=interrupt))
    assert not leftovers(cache) or not files.SHARES_FREELY  # where the next load removes what is mapped
    assert not entries(cache)
    assert (load(model, cache).report.cache, leftovers(cache)) == ("made", [])


# ---- lifetimes, threads, processes


@IN_PLACE
def test_everything_is_given_back(model: Path, cache: Path) -> None:
    load(model, cache)
    written_back(cache)
    before = settled_descriptors()
    session = create_session(str(model), options=Options(cache_dir=cache))
    held: Any = session.io_binding()
    del session
    gc.collect()
    assert mapped(cache)
    del held
    gc.collect()
    assert not mapped(cache)
    assert settled_descriptors() == before


@pytest.mark.needs("free names")
def test_sessions_outlive_their_entry(model: Path, cache: Path) -> None:
    load(model, cache)
    written_back(cache)
    session = create_session(str(model), options=Options(cache_dir=cache))
    wanted = result(session)
    (entry,) = entries(cache)
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    np.testing.assert_array_equal(result(session), wanted)
    session.set_providers(["CPUExecutionProvider"])
    np.testing.assert_array_equal(result(session), wanted)


def test_threads_pack_once(model: Path, cache: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: load(model, cache), range(8)))
    assert sorted(one.report.cache for one in found) == ["made", *["used"] * 7]
    assert len({one.digest for one in found}) == 1


@pytest.mark.slow
def test_processes_pack_once(model: Path, cache: Path) -> None:
    outcomes = [outcome_of(process) for process in [loading(model, cache) for _ in range(5)]]
    assert sorted(how for how, _ in outcomes) == ["made", *["used"] * 4]
    assert {digest for _, digest in outcomes} == {load(model, None).digest}


@pytest.mark.parametrize(
    "milliseconds", [300, *(pytest.param(late, marks=pytest.mark.slow) for late in (150, 400, 500, 600))]
)
def test_what_a_killed_process_leaves_is_swept(tmp_path: Path, cache: Path, milliseconds: int) -> None:
    path = saved(stack(12, 1024), tmp_path / "model")
    process = loading(path, cache)
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    next_one = load(path, cache)
    assert next_one.report.cache in ("made", "used")
    assert next_one.digest == load(path, None).digest
    assert not leftovers(cache)


# ---- warm-up and shared weights


def test_warming_up(model: Path, cache: Path) -> None:
    assert warm(model, options=Options(cache_dir=cache)).cache == "made"
    (entry,) = entries(cache)
    assert (entry / "on-disk").exists()
    assert warm(model, options=Options(cache_dir=cache)).cache == "used"
    assert load(model, cache).report.cache == "used"
    assert not mapped(cache)
    with pytest.raises(ValueError, match="cache_dir"):
        warm(model, options=Options())


def test_a_helper_that_fails_costs_only_the_sharing(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    loaded = load(model, cache, share_weights=True)
    assert (loaded.report.route, loaded.report.shared_bytes) == (ROUTE, 0)
    assert "not shared" in caplog.text
    assert loaded.digest == load(model, None).digest


@pytest.mark.parametrize(("asked", "parallel"), [({}, "1"), ({PARALLEL_KEY: "0"}, "0")])
def test_shared_weights_are_compared_in_parallel(
    asked: dict[str, str], parallel: str, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created, real = list[str | None](), hook.create_stock

    def create(session: Any, call: Any) -> None:
        created.append(config_entry(hook.constructor_arguments(session)[1], PARALLEL_KEY))
        real(session, call)

    monkeypatch.setattr(hook, "create_stock", create)
    options = Options(cache_dir=cache, share_weights=True)
    for _ in range(2):
        create_session(model, with_entries(asked), CPU, options=options)
    assert created == [parallel] * 2
