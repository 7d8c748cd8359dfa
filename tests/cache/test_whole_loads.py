"""Loads through the cache, as their callers see them."""

from __future__ import annotations

import errno
import gc
import json
import logging
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session, warm
from ort_qdq_plugin.cache import store as store_module
from ort_qdq_plugin.options import Verify
from ort_qdq_plugin.system.platform import files, host
from tests.cache.support import entries, leftovers, load, loading, loads_apart, outcome_of, without_locks, written_back
from tests.support import CPU, added_provider, linear, made_report, mapped, quiet, result, save, settled_descriptors, stack

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "K-major": lambda: stack(3, 256),
    "N-major, in place": lambda: stack(3, 256, n_major=True),
    "signed": lambda: stack(2, 128, element="int4", zero="none"),
    "8 bits": lambda: stack(2, 128, element="uint8"),
}


@pytest.fixture(params=["inline", "external"])
def form(request: pytest.FixtureRequest) -> Any:
    return {"inline": "file", "external": "external"}[request.param]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(stack(4, 512), tmp_path / "model", "external")


def saved(proto: onnx.ModelProto, folder: Path, form: Any) -> Path:
    folder.mkdir()
    path = save(proto, folder, form)
    assert isinstance(path, str)
    return Path(path)


@pytest.mark.parametrize("kind", MODELS)
def test_every_load_gives_the_same(kind: str, form: Any, tmp_path: Path, cache: Path) -> None:
    path = saved(MODELS[kind](), tmp_path / "model", form)
    without = load(path, None)
    first, second, third = (load(path, cache) for _ in range(3))
    assert [one.report.cache for one in (without, first, second, third)] == ["", "made", "used", "used"]
    assert {one.digest for one in (without, first, second, third)} == {without.digest}
    assert second.report.fused == without.report.fused
    assert second.report.packed_bytes == without.report.packed_bytes
    assert not leftovers(cache)


@pytest.mark.parametrize("kind", ["K-major", "N-major, in place"])
def test_stock_opens_an_entry_by_path(kind: str, form: Any, tmp_path: Path, cache: Path) -> None:
    path = saved(MODELS[kind](), tmp_path / "model", form)
    ours = create_session(str(path), providers=CPU, options=Options(cache_dir=cache))
    (entry,) = entries(cache)
    stock = ort.InferenceSession(str(entry / "model.onnx"), quiet(), CPU)
    np.testing.assert_array_equal(result(stock), result(ours))


def test_a_warm_load_imports_nothing_heavy(model: Path, cache: Path) -> None:
    load(model, cache)
    code = """
import sys
import onnxruntime
from ort_qdq_plugin import Options, create_session, report_of
session = create_session(sys.argv[1], options=Options(cache_dir=sys.argv[2]))
assert report_of(session).cache == "used"
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(model), str(cache)], check=True, capture_output=True, text=True)
    imported = done.stdout.split()
    heavy = (
        "onnx",
        "google",
        "subprocess",
        "ort_qdq_plugin.load.prepare",
        "ort_qdq_plugin.fusion",
        "ort_qdq_plugin.packing",
    )
    assert not [name for name in imported if name.startswith(tuple(f"{one}." for one in heavy)) or name in heavy]


def test_that_nothing_can_be_fused_is_remembered(tmp_path: Path, cache: Path) -> None:
    from tests.model.test_glance import product

    path = saved(product(), tmp_path / "model", "file")
    reports = [load(path, cache).report for _ in range(2)]
    assert [report.cache for report in reports] == ["", "used"]
    assert {(report.stock_reason, report.stock_detail) for report in reports} == {
        (StockReason.NOT_FUSIBLE, "activations are quantized wherever weights are")
    }
    assert reports[1].unfused


def test_levels_have_entries_of_their_own_and_stay_valid(tmp_path: Path, cache: Path) -> None:
    """Each has a link of the model's data, and linking changes one of its times."""
    path = saved(MODELS["N-major, in place"](), tmp_path / "model", "external")
    for _ in range(2):
        for level in (0, 4):
            load(path, cache, accuracy_level=level)
    assert [load(path, cache, accuracy_level=level).report.cache for level in (0, 4, 0, 4)] == ["used"] * 4
    assert len(entries(cache)) == 2


def test_folders_and_files_are_private(model: Path, cache: Path) -> None:
    load(model, cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    (entry,) = entries(cache)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    own = [path for path in entry.iterdir() if not path.name.startswith("data-")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in own} == {0o400}


# ---- what makes an entry useless


def in_place(path: Path) -> None:
    """Change a weight, and put the time of the change back."""
    times = path.stat()
    with open(path.with_name("model.data"), "r+b") as data:
        before = os.fstat(data.fileno())
        data.seek(1000)
        byte = data.read(1)[0]
        data.seek(1000)
        data.write(bytes([byte ^ 0xFF]))
    os.utime(path.with_name("model.data"), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == times.st_mtime_ns


def renamed(path: Path) -> None:
    """Put another model in its place."""
    other = saved(stack(4, 512, seed="another"), path.parent.parent / "other", "external")
    for name in ("model.data", "model.onnx"):
        os.replace(other.with_name(name), path.with_name(name))


@pytest.mark.parametrize("change", [in_place, renamed])
@pytest.mark.parametrize("verify", ["stat", "content"])
def test_a_model_that_changes_is_packed_again(
    model: Path, cache: Path, change: Callable[[Path], None], verify: Verify
) -> None:
    old = load(model, cache, verify=verify)
    running = create_session(str(model), providers=CPU, options=Options(cache_dir=cache, verify=verify))
    wanted = result(running)
    change(model)
    new = load(model, cache, verify=verify)
    assert new.report.cache == "made"
    assert new.digest != old.digest
    assert new.digest == load(model, None).digest == load(model, cache, verify=verify).digest
    if change is renamed:
        np.testing.assert_array_equal(result(running), wanted)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """One model file, and two files of weights for it."""
    for seed in ("old", "new"):
        path = saved(stack(2, 256, seed=seed), tmp_path / seed, "external")
        (tmp_path / "blobs").mkdir(exist_ok=True)
        os.replace(path, tmp_path / "blobs" / "model")
        os.replace(path.with_suffix(".data"), tmp_path / "blobs" / seed)
    return tmp_path / "blobs"


def snapshot(blobs: Path, weights: str) -> Path:
    """A model as it is in Hugging Face's cache: links of files that revisions share."""
    folder = blobs.with_name(f"revision-{weights}")
    folder.mkdir()
    (folder / "model.onnx").symlink_to(blobs / "model")
    (folder / "model.data").symlink_to(blobs / weights)
    return folder / "model.onnx"


def test_revisions_that_share_a_model_file_have_entries_of_their_own(blobs: Path, cache: Path) -> None:
    loaded = {weights: load(snapshot(blobs, weights), cache) for weights in ("old", "new")}
    assert loaded["old"].digest != loaded["new"].digest
    assert loaded["new"].digest == load(blobs.with_name("revision-new") / "model.onnx", None).digest


def test_weights_that_a_link_leads_away_from_are_not_used(blobs: Path, cache: Path) -> None:
    model = snapshot(blobs, "old")
    old = load(model, cache)
    model.with_suffix(".data").unlink()
    model.with_suffix(".data").symlink_to(blobs / "new")
    new = load(model, cache)
    assert new.report.cache == "made"
    assert new.digest == load(model, None).digest != old.digest


def damaged(entry: Path, name: str, how: str) -> None:
    path = entry / name
    path.chmod(0o600)
    if how == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "removed":
        path.unlink()
    elif how == "writable":
        path.chmod(0o666)
    elif how == "linked":
        path.rename(entry.parent / "elsewhere")
        path.symlink_to(entry.parent / "elsewhere")
    if how in ("flipped", "truncated"):
        path.chmod(0o400)


@pytest.mark.parametrize("how", ["flipped", "truncated", "removed", "writable", "linked"])
@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "packed-0.bin"])
def test_a_damaged_entry_is_made_anew(model: Path, cache: Path, name: str, how: str) -> None:
    verify = "content" if (name, how) == ("packed-0.bin", "flipped") else "stat"
    wanted = load(model, cache, verify=verify).digest
    (entry,) = entries(cache)
    damaged(entry, name, how)
    again = load(model, cache, verify=verify)
    assert (again.report.cache, again.digest) == ("made", wanted)
    assert load(model, cache, verify=verify).report.cache == "used"
    assert not leftovers(cache)


def test_a_folder_that_others_can_write_to_is_not_used(model: Path, cache: Path) -> None:
    load(model, cache)
    (entry,) = entries(cache)
    entry.chmod(0o777)
    assert load(model, cache).report.cache == "made"
    (entry,) = entries(cache)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700


def test_an_entry_that_was_not_on_disk_does_not_survive_a_restart(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "write_back", lambda *_: None)
    load(model, cache)
    assert load(model, cache).report.cache == "used"
    monkeypatch.setattr(host, "boot_id", lambda: "the next one")
    assert load(model, cache).report.cache == "made"


def test_versions_share_a_directory(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(model, cache)
    monkeypatch.setattr("ort_qdq_plugin.__version__", "0.0.other")
    assert [load(model, cache).report.cache for _ in range(2)] == ["made", "used"]
    monkeypatch.undo()
    assert load(model, cache).report.cache == "used"


# ---- what the cache cannot help


def test_models_as_bytes_and_added_providers_do_without(model: Path, cache: Path, tmp_path: Path) -> None:
    inline = saved(linear(Weight(k=256, n=256)), tmp_path / "inline", "file")
    session = create_session(inline.read_bytes(), providers=CPU, options=Options(cache_dir=cache))
    assert made_report(session).cache == ""
    by_path = create_session(str(model), added_provider(), options=Options(cache_dir=cache, spill_dir=tmp_path))
    assert (made_report(by_path).route, made_report(by_path).cache) == ("by path", "")
    load(model, cache)
    by_path = create_session(str(model), added_provider(), options=Options(cache_dir=cache, spill_dir=tmp_path))
    assert (made_report(by_path).route, made_report(by_path).cache) == ("by path", "")


def test_a_file_system_without_locks(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    assert [load(model, cache).report.cache for _ in range(2)] == ["made", "used"]


def full(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    real = os.posix_fallocate

    def no_room(descriptor: int, offset: int, length: int) -> None:
        if str(cache) in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", no_room)


def unmappable(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    real = mmap.mmap

    def refuse(descriptor: int, *args: Any, **options: Any) -> mmap.mmap:
        if descriptor >= 0 and str(cache) in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENODEV, "No such device")
        return real(descriptor, *args, **options)

    monkeypatch.setattr(mmap, "mmap", refuse)


def a_file(_: pytest.MonkeyPatch, cache: Path) -> None:
    cache.write_text("not a directory")


def busy(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(files, "try_lock", lambda _: False)


@pytest.mark.parametrize("fault", [full, unmappable, a_file, busy])
def test_where_the_cache_fails_loading_does_not(
    model: Path,
    cache: Path,
    fault: Callable[[pytest.MonkeyPatch, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = load(model, None).digest
    fault(monkeypatch, cache)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        loaded = load(model, cache)
    assert (loaded.report.route, loaded.report.cache, loaded.digest) == ("borrowed", "", wanted)
    assert [record.message for record in caplog.records if "without the cache" in record.message]
    assert len(caplog.records) == 1
    monkeypatch.undo()
    assert not cache.is_dir() or not leftovers(cache)


def test_an_interrupt_while_packing_leaves_nothing(model: Path, cache: Path) -> None:
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_session(str(model), providers=CPU, options=Options(cache_dir=cache, progress=interrupt))
    assert not leftovers(cache)
    assert not entries(cache)
    assert load(model, cache).report.cache == "made"


# ---- making room


def test_the_least_recently_used_go_first_and_none_in_use(tmp_path: Path, cache: Path) -> None:
    paths = [saved(stack(2, 256, seed=name), tmp_path / name, "external") for name in "abc"]
    for age, path in enumerate(paths):
        load(path, cache)
        for lock in cache.glob("*.lock"):
            os.utime(lock, (time.time() - 100 + age * 10,) * 2) if lock.stat().st_mtime > time.time() - 50 else None
    in_use = create_session(str(paths[0]), providers=CPU, options=Options(cache_dir=cache))
    wanted = result(in_use)
    fourth = saved(stack(2, 256, seed="d"), tmp_path / "d", "external")
    load(fourth, cache, cache_max_bytes=0)
    assert [load(path, cache).report.cache for path in (paths[0], paths[1], paths[2])] == ["used", "made", "made"]
    np.testing.assert_array_equal(result(in_use), wanted)


def test_a_clock_that_was_ahead_does_not_keep_an_entry_for_ever(tmp_path: Path, cache: Path) -> None:
    path = saved(stack(2, 256), tmp_path / "old", "external")
    load(path, cache)
    (lock,) = cache.glob("*.lock")
    os.utime(lock, (time.time() + 1e9,) * 2)
    gc.collect()
    load(saved(stack(2, 256, seed="new"), tmp_path / "new", "external"), cache, cache_max_bytes=0)
    gc.collect()
    assert load(path, cache).report.cache == "made"


def test_folders_of_others_are_not_taken_for_entries(model: Path, cache: Path) -> None:
    theirs = cache / "web"
    theirs.mkdir(parents=True)
    (theirs / "manifest.json").write_text("{}")
    load(model, cache, cache_max_bytes=0)
    assert (theirs / "manifest.json").exists()


# ---- lifetimes, threads, processes


def test_everything_is_given_back(model: Path, cache: Path) -> None:
    load(model, cache)
    written_back(cache)
    before = settled_descriptors()
    session = create_session(str(model), providers=CPU, options=Options(cache_dir=cache))
    assert mapped(cache)
    binding = session.io_binding()
    del session
    gc.collect()
    assert mapped(cache)
    del binding
    gc.collect()
    assert not mapped(cache)
    assert settled_descriptors() == before


def test_sessions_outlive_their_entry(model: Path, cache: Path) -> None:
    load(model, cache)
    written_back(cache)
    session = create_session(str(model), providers=CPU, options=Options(cache_dir=cache))
    wanted = result(session)
    (entry,) = entries(cache)
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    np.testing.assert_array_equal(result(session), wanted)
    session.set_providers(CPU)
    np.testing.assert_array_equal(result(session), wanted)


def test_threads_pack_once(model: Path, cache: Path) -> None:
    found: list[tuple[str, str]] = []

    def work() -> None:
        loaded = load(model, cache)
        found.append((loaded.report.cache, loaded.digest))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(how for how, _ in found) == ["made", *["used"] * 7]
    assert len({digest for _, digest in found}) == 1


def test_processes_pack_once(model: Path, cache: Path) -> None:
    outcomes = loads_apart(model, cache, 5)
    assert sorted(how for how, _, _ in outcomes) == ["made", *["used"] * 4]
    assert {digest for _, digest, _ in outcomes} == {load(model, None).digest}


@pytest.mark.parametrize("milliseconds", [150, 300, 400, 500, 600])
def test_what_a_killed_process_leaves_is_swept(tmp_path: Path, cache: Path, milliseconds: int) -> None:
    path = saved(stack(12, 1024), tmp_path / "model", "external")
    wanted = load(path, None).digest
    process = loading(path, cache)
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    how, digest, _ = outcome_of(loading(path, cache))
    assert digest == wanted
    assert how in ("made", "used")
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


@pytest.mark.parametrize("kind", MODELS)
def test_shared_weights_give_the_same(kind: str, form: Any, tmp_path: Path, cache: Path) -> None:
    path = saved(MODELS[kind](), tmp_path / "model", form)
    without = load(path, None)
    first, second = (load(path, cache, share_weights=True) for _ in range(2))
    assert [one.report.cache for one in (first, second)] == ["made", "used"]
    assert {one.report.route for one in (first, second)} == {"shared"}
    assert first.report.shared_bytes == second.report.shared_bytes > 0
    assert {one.digest for one in (first, second)} == {without.digest}
    assert first.report.seconds["share"] > 0


def test_weights_that_are_not_shared_after_all_are_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on another kind of processor, whose hash of what it pre-packs is another one."""
    model = saved(stack(12, 2048), tmp_path / "model", "external")
    wanted = load(model, cache, share_weights=True).digest
    (entry,) = entries(cache)
    shared = entry / "model-shared.onnx"
    proto = onnx.load(shared, load_external_data=False)
    for tensor in proto.graph.initializer:
        for item in tensor.external_data:
            if item.key.startswith("prepacked"):
                item.value = item.value.replace("MatMulNBits+", "MatMulNBits+9")
    shared.chmod(0o600)
    onnx.save(proto, shared)
    shared.chmod(0o400)
    monkeypatch.setattr(store_module, "_check_files", lambda *_: None)
    loaded = load(model, cache, share_weights=True)
    assert loaded.digest == wanted
    assert loaded.report.shared_bytes == 0
    assert "not shared" in caplog.text


def test_a_helper_that_fails_costs_only_the_sharing(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    loaded = load(model, cache, share_weights=True)
    assert (loaded.report.route, loaded.report.shared_bytes) == ("borrowed", 0)
    assert "not shared" in caplog.text
    assert loaded.digest == load(model, None).digest


def test_the_manifest_is_readable(model: Path, cache: Path) -> None:
    load(model, cache)
    (entry,) = entries(cache)
    body = (entry / "manifest.json").read_bytes().partition(b"\n")[2]
    assert json.loads(body)["sources"][0][0] == str(model.resolve())
