"""Models that change, and entries that are damaged: what is noticed, and what a load gives then."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cache.writer import EntryWriter
from ort_qdq_plugin.options import Verify
from tests.cache.support import digest_of_results, entries, leftovers, load, saved
from tests.support import stack


def in_place(path: Path) -> None:
    """Change a weight."""
    data = path.with_name("model.data")
    content = bytearray(data.read_bytes())
    content[1000] ^= 0xFF
    with data.open("r+b") as file:
        file.write(content)


def unnoticed(path: Path) -> None:
    """Change a weight, and put the time of the change back."""
    data = path.with_name("model.data")
    before = data.stat()
    in_place(path)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))


def renamed(path: Path) -> None:
    """Put another model in its place."""
    other = saved(stack(4, 512, seed="another"), path.parent.parent / "other")
    for name in ("model.data", "model.onnx"):
        os.replace(other.with_name(name), path.with_name(name))


@pytest.mark.parametrize(
    ("change", "verify"),
    [(in_place, "stat"), (renamed, "stat"), (in_place, "content"), (renamed, "content"), (unnoticed, "content")],
)
def test_a_model_that_changes_is_packed_again(
    model: Path, cache: Path, change: Callable[[Path], None], verify: Verify
) -> None:
    old = load(model, cache, verify=verify)
    running = create_session(str(model), options=Options(cache_dir=cache, verify=verify))
    change(model)
    new = load(model, cache, verify=verify)
    assert new.report.cache == "made"
    assert new.digest != old.digest
    assert new.digest == load(model, None).digest == load(model, cache, verify=verify).digest
    if change is renamed:
        assert digest_of_results(running) == old.digest


def test_what_the_status_of_a_file_cannot_tell(model: Path, cache: Path) -> None:
    old = load(model, cache)
    unnoticed(model)
    assert load(model, cache).digest == old.digest != load(model, None).digest


def test_a_file_that_is_written_again_within_a_step_of_the_clock(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and its times stay what they were when it was read."""
    first, second = (saved(stack(2, 256, seed=seed), tmp_path / seed, "file") for seed in ("first", "other"))
    wanted, now = load(second, None).digest, time.time_ns() + 60_000_000_000
    os.utime(first, ns=(now, now))
    real = EntryWriter.check_age

    def written_again(*args: Any) -> None:
        with first.open("r+b") as file:
            file.write(second.read_bytes())
        os.utime(first, ns=(now, now))
        real(*args)

    monkeypatch.setattr(EntryWriter, "check_age", written_again)
    loaded = [load(first, cache) for _ in range(2)]
    assert [one.digest for one in loaded] == [wanted] * 2
    assert [one.report.cache for one in loaded] == ["made", "used"]


def test_weights_that_links_lead_to(tmp_path: Path, cache: Path) -> None:
    """As in Hugging Face's cache: revisions share one model file, and a revision's link may lead elsewhere one day."""
    blobs = saved(stack(2, 256, seed="old"), tmp_path / "blobs").parent
    other = saved(stack(2, 256, seed="new"), tmp_path / "other").with_name("model.data")
    os.replace(other, blobs / "new.data")
    models = [tmp_path / name / "model.onnx" for name in ("old", "new")]
    for path, weights in zip(models, ("model.data", "new.data"), strict=True):
        path.parent.mkdir()
        path.symlink_to(blobs / "model.onnx")
        path.with_name("model.data").symlink_to(blobs / weights)
    old, new = (load(path, cache).digest for path in models)
    assert old != new == load(models[1], None).digest
    models[0].with_name("model.data").unlink()
    models[0].with_name("model.data").symlink_to(blobs / "new.data")
    led_away = load(models[0], cache)
    assert (led_away.report.cache, led_away.digest) == ("made", new)


@pytest.mark.parametrize(
    ("name", "verify"), [("manifest.json", "stat"), ("model.onnx", "stat"), ("packed-0.bin", "content")]
)
def test_a_damaged_entry_is_made_anew(model: Path, cache: Path, name: str, verify: str) -> None:
    wanted = load(model, cache, verify=verify).digest
    path = entries(cache)[0] / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    again = load(model, cache, verify=verify)
    assert (again.report.cache, again.digest) == ("made", wanted)
    assert load(model, cache, verify=verify).report.cache == "used"
    assert not leftovers(cache)
