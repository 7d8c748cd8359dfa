"""cache.md: many processes, shared weights, what is prepared elsewhere, making room, and what a large host needs."""

import os
import re
import shutil
import stat
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import Options, Report, create_session, warm
from ort_qdq_plugin.cache import portable, store
from ort_qdq_plugin.cache.entry import Entry
from ort_qdq_plugin.load import journey, sharing
from ort_qdq_plugin.load.journey import prepare_cached
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.system.platform import host
from tests.claims.pages import rows_below, text_of
from tests.claims.registry import claim
from tests.claims.running import default_of, parser_of
from tests.support import CPU, ROOT, added_provider, made_report, quiet

PAGE = "docs/cache.md"
TIMES = "64 \N{MULTIPLICATION SIGN}"


def loaded(model: str | bytes, **options: Any) -> Report:
    return made_report(create_session(model, quiet(), CPU, options=Options(**options)))


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


@claim(PAGE, "so an entry is made only of files that had not changed within a step before they were read.")
@claim(PAGE, "If they had, the load waits: 20 ms, or 2 seconds on file systems that store times in seconds.")
def test_young_files_are_waited_for(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("ort_qdq_plugin.load.through_cache.time.sleep", waited.append)
    for seconds, fraction in ((0, 0), (0, 1), (-3600, 0)):
        moment = (time.time_ns() // 10**9 + seconds) * 10**9
        os.utime(model, ns=(moment, time.time_ns() + seconds * 10**9 if fraction else moment))
        loaded(str(model), cache_dir=tmp_path / "cache", strict=True)
    assert waited == [2, 0.02]


@claim(PAGE, "If not, it begins anew: once more with the cache, and then without it.")
def test_how_often_a_load_begins_anew(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm(model, options=Options(cache_dir=tmp_path / "cache", share_weights=True))
    tried: list[str] = []

    def replaced(*arguments: Any, **named: Any) -> PreparedModel:
        tried.append("cache")
        return prepare_cached(*arguments, **named)

    monkeypatch.setattr(journey, "prepare_cached", replaced)
    monkeypatch.setattr(Entry, "is_current", lambda _: False)
    report = loaded(str(model), cache_dir=tmp_path / "cache", share_weights=True, strict=True)
    assert (len(tried), report.cache, len(report.fused)) == (2, "", 1)


@claim(PAGE, "If the cache cannot be used (a full disk, a file in place of the directory, no permission), there is one")
@claim(PAGE, "`warm` raises an error instead")
@claim("docs/troubleshooting.md", "| the cache cannot be used; the error follows |")
def test_a_file_in_place_of_the_directory(small: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").touch()
    report = loaded(small, cache_dir=tmp_path / "cache")
    assert (len(report.fused), report.cache) == (1, "")
    (record,) = caplog.records
    assert record.getMessage().startswith("loading without the cache: ")
    with pytest.raises(OSError, match="cache"):
        warm(small, options=Options(cache_dir=tmp_path / "cache"))


@claim(PAGE, "They wait as long as what it writes grows, up to ten minutes. If it stops growing for a minute,")
def test_how_long_loads_wait() -> None:
    assert (store._PATIENCE, store._LONG_PATIENCE) == (60, 600)


@claim(PAGE, "`python -m conformance.cache` starts 16 processes at once, kills 200 of them at random moments,")
@claim("docs/measuring.md", "the [cache](cache.md): 16 processes at once, 200 kills, 2,000 damaged entries")
def test_what_the_check_of_the_cache_does() -> None:
    options = ("--processes", "--kills", "--corruptions")
    # It verifies in two ways.
    assert [default_of("conformance.cache", option) for option in options] == [16, 200, 2000 / 2]


@claim(PAGE, "The entry is for one kind of processor, as the system describes it, and is kept apart from one without")
def test_shared_entries_are_kept_apart(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, shares in enumerate((False, True, True)):
        loaded(small, cache_dir=tmp_path, share_weights=shares, strict=True)
        assert len(entries(tmp_path)) == min(number, 1) + 1
    monkeypatch.setattr(host, "processor", lambda: "another one")
    assert loaded(small, cache_dir=tmp_path, share_weights=True, strict=True).cache == "made"


@claim(PAGE, "That is noticed from 4 MiB of pre-packed weights on")
def test_from_when_it_is_noticed() -> None:
    assert sharing._MEASURABLE_BYTES == 4 << 20


@claim(PAGE, "Each takes `--model`, and the first and the last also batches of tensors (`--input`, `--output`).")
def test_arguments_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    for (command, _), with_batches in zip(rows_below(PAGE, "| example | what |"), (True, False, True), strict=True):
        (script,) = re.findall(r"examples/(\w+)\.py", command)
        needed = {"ray_actors": "ray", "prefork_server": "gunicorn"}.get(script)
        if needed is None or find_spec(needed):
            taken = {option for action in parser_of(script)._actions for option in action.option_strings}
            assert "--model" in taken
            assert ({"--input", "--output"} <= taken) == with_batches


@pytest.fixture
def model(small: str, tmp_path: Path) -> Path:
    """A copy of a model, alone in a folder."""
    (tmp_path / "models").mkdir()
    return Path(shutil.copy2(small, tmp_path / "models" / "model.onnx"))


def content(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")]}


@claim(PAGE, "It may be on a read-only file system: nothing is ever written there.")
@claim(PAGE, 'From Python it is `warm(path, options=Options(cache_dir="prepared"), portable=True)`.')
@claim(PAGE, "a `cache_dir` beside it is used for what is not in it")
@claim(PAGE, "**Where** the model is, and who loads it, does not matter.")
@claim(PAGE, "a directory of models that were [prepared elsewhere](#prepared-elsewhere); it is searched first")
def test_prepared_elsewhere(model: Path, mixed_model: str, tmp_path: Path) -> None:
    prepared, cache = tmp_path / "prepared", tmp_path / "cache"
    warm(model, options=Options(cache_dir=prepared), portable=True)
    before = content(prepared)
    os.rename(model.parent, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "model.onnx"
    options: dict[str, Any] = {"prepared": prepared, "cache_dir": cache, "strict": True}
    assert loaded(str(moved), **options).cache == "prepared"
    assert not cache.exists()
    assert [loaded(mixed_model, **options).cache for _ in range(2)] == ["made", "used"]
    assert content(prepared) == before


@claim(PAGE, "16 of 4 KiB each, so that other weights in files of the same size and time are noticed")
@claim(
    PAGE,
    "is the recorded one, that is all. Otherwise each load reads and compares all of it",
)
@claim(PAGE, "and image layers keep them; whole seconds are enough")
@claim(PAGE, 'is noticed by `verify="content"` alone, which reads everything in every load')
def test_how_models_are_known(large: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ort_qdq_plugin")
    for path in Path(large).parent.glob("large.*"):
        shutil.copy2(path, tmp_path)
    model, data, prepared = tmp_path / "large.onnx", tmp_path / "large.data", tmp_path / "prepared"
    warm(model, options=Options(cache_dir=prepared), portable=True)
    now = data.stat().st_mtime_ns

    def found(moment: int, **options: Any) -> tuple[str, bool]:
        os.utime(data, ns=(moment, moment))
        caplog.clear()
        return loaded(str(model), prepared=prepared, **options).cache, "all of" in caplog.text

    assert found(now) == found(now // 10**9 * 10**9) == ("prepared", False)
    assert found(now + 10**9) == ("prepared", True)
    assert (portable._SAMPLES, portable._SAMPLE_BYTES) == (16, 4 << 10)
    original = data.read_bytes()
    between = 4096 + 512  # the second piece begins further on: there are two in 120 KB
    assert len(original) > 16 * 2 * between
    for offset, known in ((0, ""), (between, "prepared")):
        data.write_bytes(original[:offset] + bytes([original[offset] ^ 1]) + original[offset + 1 :])
        assert found(now)[0] == known
    assert found(now, verify="content")[0] == ""


@claim(PAGE, "They are not used if anybody else can write to them, or to a directory above.")
@claim(PAGE, "On another one the model is packed as without it.")
def test_who_may_write_there_and_where(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tmp_path / "above" / "prepared"
    warm(model, options=Options(cache_dir=prepared), portable=True)
    for folder in (prepared, prepared.parent):
        before = stat.S_IMODE(folder.stat().st_mode)
        folder.chmod(0o777)
        assert loaded(str(model), prepared=prepared).cache == ""
        folder.chmod(before)
    assert loaded(str(model), prepared=prepared).cache == "prepared"
    monkeypatch.setattr(host, "is_arm", lambda: True)
    report = loaded(str(model), prepared=prepared)
    assert (report.cache, len(report.fused)) == ("", 1)


@claim(PAGE, "So copy with times: tar,")
def test_archives(model: Path, tmp_path: Path) -> None:
    warm(model, options=Options(cache_dir=tmp_path / "prepared"), portable=True)
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        for name in ("models", "prepared"):
            archive.add(tmp_path / name, name)
    with tarfile.open(tmp_path / "image.tar") as archive:
        archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)  # from Python 3.11.4 on
        archive.extractall(tmp_path / "image")
    report = loaded(str(tmp_path / "image/models/model.onnx"), prepared=tmp_path / "image/prepared", strict=True)
    assert report.cache == "prepared"


@claim(PAGE, "removes those that were not used for the longest time, until all together are at most that large on disk.")
@claim(PAGE, "The time of an entry's lock file (`NAME.lock`) says when it was used last.")
def test_making_room(small: str, mixed_model: str, large: str, tmp_path: Path) -> None:
    loaded(small, cache_dir=tmp_path)
    (of_small,) = entries(tmp_path)
    loaded(mixed_model, cache_dir=tmp_path)
    (of_mixed,) = {*entries(tmp_path)} - {of_small}
    for entry, moment in ((of_mixed, 1000), (of_small, 2000)):
        os.utime(f"{entry}.lock", (moment, moment))
    loaded(large, cache_dir=tmp_path)
    on_disk = sum(file.stat().st_blocks * 512 for entry in entries(tmp_path) for file in entry.iterdir())
    # As much as there is now and one small model more, but for a byte.
    made = sum(file.stat().st_blocks * 512 for file in of_small.iterdir())
    loaded(small, cache_dir=tmp_path, accuracy_level=0, cache_max_bytes=on_disk + made - 1)
    assert (of_mixed in entries(tmp_path), of_small in entries(tmp_path), len(entries(tmp_path))) == (False, True, 3)


@claim(PAGE, "A model given as bytes is not cached.")
@claim(PAGE, "Sessions with providers added to their `SessionOptions`,")
def test_what_is_not_cached(small: str, tmp_path: Path) -> None:
    assert loaded(Path(small).read_bytes(), cache_dir=tmp_path / "cache").cache == ""
    session = create_session(small, added_provider(), options=Options(cache_dir=tmp_path / "cache"))
    assert (made_report(session).cache, made_report(session).route) == ("", "by path")
    assert not (tmp_path / "cache").exists() or not entries(tmp_path / "cache")


@claim(PAGE, "4 + 32/32 + 4/32 = 5.125 bits, the model 8e9")
@claim(PAGE, "1.17 times that (2792 MB of 2385 MB), so 6.0 GB here")
@claim(PAGE, "| 64 workers on one host | private memory | shared | together |")
@claim(PAGE, "5.1 GB, or 11.1 GB with shared weights, about 45 or 90 seconds on 1 Gbit/s")
def test_arithmetic_of_a_large_host() -> None:
    assert 4 + 32 / 32 + 4 / 32 == 5.125
    model = 8e9 * 5.125 / 8 / 1e9
    pre_packed = model * 2792 / 2385
    assert (round(model, 1), round(2792 / 2385, 2), round(pre_packed, 1)) == (5.1, 1.17, 6.0)
    alone, together = rows_below(PAGE, "| 64 workers on one host | private memory | shared | together |")
    assert alone == ["without sharing", f"{TIMES} 6.0 GB = 384 GB", "5.1 GB of page cache", "389 GB"]
    assert together == ["shared weights", f"{TIMES} 0.11 GB = 7 GB", "5.1 + 6.0 GB of page cache", "18 GB"]
    assert (64 * 6, round(64 * 6 + model), round(64 * 0.11), round(64 * 0.11 + model + pre_packed)) == (384, 389, 7, 18)
    for gigabytes, seconds in ((model, 45), (model + pre_packed, 90)):
        assert 0.85 * seconds < gigabytes * 8 < seconds


@claim(PAGE, "| load | init | peak | anonymous memory afterwards |")
def test_ratios_of_the_table() -> None:
    """What the page says of the figures is what its table gives."""
    _, stock, _, cached, shared = ["", *rows_below(PAGE, "| load | init | peak | anonymous memory afterwards |")]
    seconds = [float(re.findall(r"[\d.]+", row[1])[0]) for row in (stock, cached)]
    kept = [float(re.findall(r"[\d.]+", row[3])[0]) for row in (stock, shared)]
    (saved,) = re.findall(r"A load from the cache takes (\d+) % less time", text_of(PAGE))
    (private,) = re.findall(r"each keeps ([\d.]+) times the private memory", text_of(PAGE))
    assert round(100 * (1 - seconds[1] / seconds[0])) == int(saved)
    assert round(kept[1] / kept[0], 2) == float(private)
