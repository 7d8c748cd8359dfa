"""Prepared models that are made on one machine and used on others: known by what files contain, read by anybody."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import Options, warm
from ort_qdq_plugin.cache import portable
from ort_qdq_plugin.cache.manifest import digest_of
from ort_qdq_plugin.system.platform import host
from tests.cache.support import Loaded, entries, load, removed, rewritten, saved, writable_by_all
from tests.support import FORMS, ROUTE, Form, mixed, stack, unquantized

OTHER_UID = 54321


def ship(model: Path, directory: Path, **options: Any) -> Path:
    """The entry of a model in a directory of prepared ones."""
    before = entries(directory) if directory.exists() else []
    report = warm(model, options=Options(cache_dir=directory, **options), portable=True)
    assert report.cache == "made"
    (entry,) = (path for path in entries(directory) if path not in before)
    return entry


def load_with(prepared: Path, model: Path, cache: Path | None = None, **options: Any) -> Loaded:
    return load(model, cache, prepared=prepared, **options)


def state_of(folder: Path) -> list[tuple[str, int, int, int]]:
    """All that is in a folder, with modes, sizes and times."""
    paths = sorted(folder.rglob("*"))
    return [(str(path), path.stat().st_mode, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def carried(folder: Path, to: Path) -> Path:
    """A copy of a folder that went through an archive, which keeps times in whole seconds."""
    with tarfile.open(to.with_suffix(".tar"), "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(folder, ".")
    with tarfile.open(to.with_suffix(".tar")) as archive:
        archive.extractall(to, filter="fully_trusted")
    return to


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with a model and its prepared form."""
    root = tmp_path / "image"
    root.mkdir()
    saved(stack(2, 256), root / "model")
    ship(root / "model" / "model.onnx", root / "prepared")
    return root


@pytest.fixture
def read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content was compared as a whole to know a model."""
    real, seen = digest_of, list[str]()

    def counted(content: Any) -> str:
        if not isinstance(content, bytes):
            status = os.fstat(content.fileno())
            seen.extend(path.name for path in tmp_path.rglob("*.*") if os.path.samestat(path.stat(), status))
        return real(content)

    monkeypatch.setattr(portable, "digest_of", counted)
    return seen


@pytest.mark.parametrize("n_major", [False, True], ids=["packed", "in place"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "bytes"])
def test_an_archive_is_unpacked_elsewhere(form: Form, n_major: bool, tmp_path: Path, read_whole: list[str]) -> None:
    (tmp_path / "here").mkdir()
    model = saved(stack(2, 256, n_major=n_major), tmp_path / "here" / "model", form)
    ship(model, tmp_path / "here" / "prepared")
    without = load(model, None)
    there = carried(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    before = state_of(there)
    loaded = load_with(there / "prepared", there / "model" / "model.onnx")
    assert (loaded.report.cache, loaded.report.route) == ("prepared", ROUTE)
    assert "prepared elsewhere" in loaded.report.summary()
    assert loaded.digest == without.digest
    assert state_of(there) == before
    assert not read_whole


def test_times_that_were_lost_cost_reading(image: Path, read_whole: list[str]) -> None:
    for path in image.rglob("*"):
        os.utime(path, (1, 1))
    assert load_with(image / "prepared", image / "model" / "model.onnx").report.cache == "prepared"
    assert sorted(read_whole) == ["model.data", "model.onnx"]


@pytest.mark.parametrize("times_kept", [True, False])
def test_a_changed_byte_of_a_weight(times_kept: bool, image: Path) -> None:
    model, data = image / "model" / "model.onnx", image / "model" / "model.data"
    content, times = bytearray(data.read_bytes()), data.stat()
    content[5000] ^= 1  # between the pieces that are compared at each load
    data.write_bytes(content)
    if times_kept:
        os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
    right = load(model, None)
    # What size, time and samples do not show is used; with its content compared, it never is.
    assert load_with(image / "prepared", model).report.cache == ("prepared" if times_kept else "")
    loaded = load_with(image / "prepared", model, verify="content")
    assert (loaded.report.cache, loaded.digest) == ("", right.digest)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "bytes"])
def test_models_of_one_name_size_and_time(form: Form, tmp_path: Path) -> None:
    models = [saved(stack(2, 256, seed=seed), tmp_path / seed, form) for seed in ("one", "two", "six")]
    for path in tmp_path.rglob("model.*"):
        os.utime(path, (1, 1))
    for model in models[:2]:
        ship(model, tmp_path / "prepared")
    found = [load_with(tmp_path / "prepared", model) for model in models]
    assert [one.report.cache for one in found] == ["prepared", "prepared", ""]
    assert [one.digest for one in found] == [load(model, None).digest for model in models]


def test_what_is_prepared_comes_before_the_cache(image: Path, cache: Path) -> None:
    model = image / "model" / "model.onnx"
    assert load_with(image / "prepared", model, cache).report.cache == "prepared"
    assert not cache.exists()
    assert load_with(image / "prepared", model, cache, accuracy_level=0).report.cache == "made"
    shutil.rmtree(image / "prepared")
    assert load_with(image / "prepared", model, cache, accuracy_level=0).report.cache == "used"


def test_it_is_prepared_once(image: Path) -> None:
    model, before = image / "model" / "model.onnx", state_of(image)
    assert warm(model, options=Options(cache_dir=image / "prepared"), portable=True).cache == "used"
    assert state_of(image) == before
    assert [path.name for path in (image / "prepared").iterdir()] == [entries(image / "prepared")[0].name]


def test_models_with_nothing_to_do(tmp_path: Path) -> None:
    model = saved(unquantized(), tmp_path / "model")
    assert warm(model, options=Options(cache_dir=tmp_path / "prepared"), portable=True).stock_reason is not None
    assert load_with(tmp_path / "prepared", model).report.route == "stock"


def test_a_model_behind_a_link(image: Path, tmp_path: Path) -> None:
    """As in Hugging Face's cache, where both files are links to others with names of their own."""
    for number, name in enumerate(("model.onnx", "model.data")):
        (image / "model" / name).rename(image / "model" / f"blob{number}")
        (image / "model" / name).symlink_to(f"blob{number}")
    assert load_with(image / "prepared", image / "model" / "model.onnx").report.cache == "prepared"


@pytest.mark.parametrize("damage", [rewritten, removed, pytest.param(writable_by_all, marks=pytest.mark.needs("modes"))])
@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "packed-0.bin"])
def test_damaged_ones_are_not_used(damage: Any, name: str, image: Path) -> None:
    (entry,) = entries(image / "prepared")
    (entry / name).chmod(0o644)
    damage(entry / name)
    model = image / "model" / "model.onnx"
    loaded = load_with(image / "prepared", model, verify="content")
    assert (loaded.report.cache, loaded.digest) == ("", load(model, None).digest)


@pytest.mark.needs("modes")
def test_a_directory_that_others_can_write_to(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    (image / "prepared").chmod(0o777)
    assert load_with(image / "prepared", image / "model" / "model.onnx").report.cache == ""
    assert [record.message for record in caplog.records] == [
        f"prepared models cannot be used: [Errno 1] others can write to it, and it is not sticky: '{image / 'prepared'}'"
    ]


def test_shared_weights_fit_one_kind_of_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = saved(stack(2, 256), tmp_path / "model")
    ship(model, tmp_path / "prepared", share_weights=True)
    without = load(model, None)
    shared = load_with(tmp_path / "prepared", model, share_weights=True)
    assert (shared.report.route, shared.report.cache, shared.digest) == ("shared", "prepared", without.digest)
    assert shared.report.shared_bytes > 0
    monkeypatch.setattr(host, "processor", lambda: "another one")
    caplog.clear()
    elsewhere = load_with(tmp_path / "prepared", model, share_weights=True)
    assert (elsewhere.report.route, elsewhere.report.cache, elsewhere.digest) == (ROUTE, "prepared", without.digest)
    assert ["another kind of processor" in record.message for record in caplog.records] == [True]


_AS_ANOTHER = f"""
import json, os, sys
from pathlib import Path
from tests.cache.test_portable import load, load_with
image = Path(sys.argv[1])
load(image / "model" / "model.onnx", None)  # imports what the other user may not be able to read
os.setgid({OTHER_UID}), os.setuid({OTHER_UID})
loaded = load_with(image / "prepared", image / "model" / "model.onnx", share_weights=True)
print(json.dumps([loaded.report.cache, loaded.report.route, loaded.digest]))
"""


@pytest.fixture
def mounted() -> Iterator[Path]:
    """A folder on a file system of its own, which every user can enter."""
    with tempfile.TemporaryDirectory(prefix="ort-qdq-mounted-", dir="/tmp") as folder:
        mount = ["mount", "-t", "tmpfs", "none", folder]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("only root can mount")
        os.chmod(folder, 0o755)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_an_image_of_roots_is_read_by_another_user(tmp_path: Path, mounted: Path) -> None:
    """Made as root, archived, unpacked on another device, mounted read-only, loaded by a user that can write nowhere."""
    root = tmp_path / "root"
    root.mkdir()
    model = saved(stack(2, 256), root / "model")
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    ship(model, root / "prepared", share_weights=True)
    without = load(model, None)
    carried(root, mounted / "image")
    (mounted / "image").chmod(0o755)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    command = [sys.executable, "-c", _AS_ANOTHER, str(mounted / "image")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["prepared", "shared", without.digest]
    assert done.stderr == ""


def test_mixed_models_say_what_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = tmp_path / "model" / "model.onnx"
    model.write_bytes(mixed())
    made = warm(model, options=Options(cache_dir=tmp_path / "prepared"), portable=True)
    loaded = load_with(tmp_path / "prepared", model)
    assert (loaded.report.fused, loaded.report.unfused) == (made.fused, made.unfused)
