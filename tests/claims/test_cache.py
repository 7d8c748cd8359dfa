"""cache.md."""

import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import ort_qdq_plugin
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, Report, StockReason, create_session, warm
from ort_qdq_plugin.cache.prune import KEPT
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from tests.claims.pages import rows_below
from tests.claims.registry import claim
from tests.support import (
    CPU,
    linear,
    made_report,
    python,
    quiet,
    result,
    save,
    stack,
    stock,
)  # fmt: skip

PAGE = "docs/cache.md"


def loaded(model: str | bytes, cache: Path, settings: ort.SessionOptions | None = None, **options: object) -> Report:
    """The report of a session through the cache, strict about everything."""
    given = Options(strict=True, cache_dir=cache, **options)  # type: ignore[arg-type]
    report = made_report(create_session(model, settings or quiet(), options=given))
    wait_until_on_disk()
    return report


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


@pytest.fixture
def model(large: str, tmp_path: Path) -> str:
    """A copy of a model, to be changed."""
    for path in Path(large).parent.glob("large.*"):
        shutil.copy2(path, tmp_path)
    return str(tmp_path / "large.onnx")


FROM_CACHE = """
import sys
from ort_qdq_plugin import Options, create_session, report_of
report = report_of(create_session(sys.argv[1], options=Options(strict=True, cache_dir=sys.argv[2])))
print(report.cache, *(name for name in ("onnx", "google.protobuf") if name in sys.modules), *report.seconds)
"""


@claim(PAGE, "only maps it: nothing is packed, no graph is matched, and neither `onnx` nor protobuf is imported")
@claim(PAGE, "| `cache_dir` | `ORT_QDQ_PLUGIN_CACHE_DIR` | the directory; it is made if it does not exist |")
def test_later_loads(large: str, tmp_path: Path) -> None:
    warm(large, options=Options(cache_dir=tmp_path / "not" / "yet"))
    assert python(FROM_CACHE, large, tmp_path / "not" / "yet").stdout.split() == ["used", "cache", "create", "session"]


@claim(PAGE, "If nothing can be fused in a model, and a glance at it does not show that, it is remembered too.")
def test_models_of_which_nothing_is_fused(tmp_path: Path) -> None:
    model = linear(Weight())
    model.graph.node[-1].op_type = "Einsum"
    model.graph.node[-1].attribute.add(name="equation", type=3, s=b"ij,jk->j")
    path = str(save(model, tmp_path, "file"))
    reports = [loaded(path, tmp_path / "cache", dequantize_once="never") for _ in range(2)]
    assert [report.stock_reason for report in reports] == [StockReason.NOT_FUSIBLE] * 2
    assert ["match" in report.seconds for report in reports] == [True, False]


@claim(PAGE, "see [Making room](#making-room); default: no limit", '`"stat"` (default) or `"content"`')
def test_defaults() -> None:
    assert (Options().cache_max_bytes, Options().verify) == (None, "stat")


@claim(
    PAGE,
    '`report_of(session).cache` is `"made"` for the load that packed, `"used"` for one that found the model',
)
@claim(PAGE, '`"prepared"` for one that found it among those prepared elsewhere, and `""` for one without any of these')
def test_what_the_report_says_of_the_cache(small: str, tmp_path: Path) -> None:
    warm(small, options=Options(cache_dir=tmp_path / "prepared"), portable=True)
    said = [loaded(small, tmp_path / "cache").cache for _ in range(2)]
    for options in (Options(prepared=tmp_path / "prepared"), Options()):
        said.append(made_report(create_session(small, quiet(), CPU, options=options)).cache)
    assert said == ["made", "used", "prepared", ""]


@claim(PAGE, "| file | what |")
@claim(PAGE, "copies of what the model uses of its own files (`report_of(session).copied_bytes`)")
@claim(PAGE, "The folder has mode 0700, files of the entry 0400.")
@claim(PAGE, "Stock ONNX Runtime can open such an entry by path")
def test_files_of_an_entry(large: str, tmp_path: Path) -> None:
    n_major = str(save(stack(2, 256, n_major=True), tmp_path, "external", "n_major"))
    seen = set()
    for number, (path, shares) in enumerate(((large, False), (large, True), (n_major, True))):
        report = loaded(path, tmp_path / str(number), share_weights=shares)
        (entry,) = entries(tmp_path / str(number))
        seen |= {re.sub(r"\d+", "0", file.name) for file in entry.iterdir()}
        assert stat.S_IMODE(entry.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in entry.iterdir()} == {0o400}
        assert (report.copied_bytes > 0) == (entry / "data.bin").exists() == (path == n_major)
        if shares:
            np.testing.assert_array_equal(
                result(stock(str(entry / "model.onnx"))), result(create_session(path, quiet(), CPU))
            )
    assert sorted(seen) == sorted(re.findall("`(.+?)`", row[0])[0] for row in rows_below(PAGE, "| file | what |"))


@claim(PAGE, "the versions of this package and of ONNX Runtime, the accuracy level, the block size and")
@claim(PAGE, "So two versions can share a directory.")
def test_what_decides_of_an_entrys_name(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places() -> set[str]:
        return {entry.name[:16] for entry in entries(tmp_path)}

    loaded(small, tmp_path)
    for options in ({"accuracy_level": 0}, {"block_size": 64}):
        before = places()
        loaded(small, tmp_path, **options)
        assert len(places() - before) == 1
    for version in ("0.0.1", "0.0.2"):
        monkeypatch.setattr(ort_qdq_plugin, "__version__", version)
        before = places()
        assert [loaded(small, tmp_path).cache for _ in range(2)] == ["made", "used"]
        assert len(places() - before) == 1


@claim(PAGE, "Of the entries with the same first half, the four that were used last are kept, and those in use.")
@claim(PAGE, "So a model that is replaced, and one that has the same path in another container, has an entry of its")
def test_models_that_are_replaced(tmp_path: Path) -> None:
    names = []
    for number in range(6):
        path = str(save(linear(Weight(), str(number)), tmp_path, "file"))
        assert loaded(path, tmp_path / "cache").cache == "made"
        names.append({entry.name for entry in entries(tmp_path / "cache")})
    assert [len(found) for found in names] == [1, 2, 3, 4, 4, 4]
    assert KEPT == 4
    assert len({name[:16] for found in names for name in found}) == 1
    assert len(set().union(*names)) == 6


@claim(PAGE, "No link to these files is made, and nothing of them is changed.")
def test_the_models_own_files_stay(tmp_path: Path) -> None:
    model = str(save(stack(2, 256, n_major=True), tmp_path, "external"))
    before = {path: path.stat() for path in tmp_path.iterdir()}
    for shares in (False, True):
        loaded(model, tmp_path / f"cache{shares}", share_weights=shares)
    for path, status in before.items():
        now = path.stat()
        assert (now.st_nlink, now.st_mtime_ns, now.st_ctime_ns) == (1, status.st_mtime_ns, status.st_ctime_ns)


@claim(PAGE, "A volume of mode 0777, as Kubernetes' `emptyDir`, is one of those")
@claim(PAGE, "Directories that are made for the cache are yours alone.")
def test_directories_in_which_others_can_write(small: str, tmp_path: Path) -> None:
    loaded(small, tmp_path / "own")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700
    for mode, used in ((0o777, False), (0o1777, True), (0o700, True)):
        cache = tmp_path / f"{mode:o}"
        cache.mkdir()
        cache.chmod(mode)
        session = create_session(small, quiet(), CPU, options=Options(cache_dir=cache))
        assert made_report(session).cache == ("made" if used else "")


# What is done to an entry or to its model, and what the next load does: by status, and by content.
def longer(entry: Path, _model: Path) -> None:
    change(entry / "packed-0.bin", lambda data: data + b"\0")


def another_graph(entry: Path, _model: Path) -> None:
    change(entry / "model.onnx", lambda data: data.replace(b"MatMul", b"matMul", 1))


def another_manifest(entry: Path, _model: Path) -> None:
    change(entry / "manifest.json", lambda data: data.replace(b'"', b"'", 1))


def one_file_more(entry: Path, _model: Path) -> None:
    (entry / "more").touch()


def another_weight(entry: Path, _model: Path) -> None:
    change(entry / "packed-0.bin", flipped)


def another_time(_entry: Path, model: Path) -> None:
    os.utime(model, (1, 1))


def another_content(_entry: Path, model: Path) -> None:
    status = model.stat()
    change(model.with_suffix(".data"), flipped)
    os.utime(model.with_suffix(".data"), ns=(status.st_atime_ns, status.st_mtime_ns))


def another_mode_and_name(_entry: Path, model: Path) -> None:
    model.chmod(0o644)
    os.link(model, model.parent / "backup")


def change(path: Path, made: Callable[[bytes], bytes]) -> None:
    path.chmod(0o600)
    status = path.stat()
    path.write_bytes(made(path.read_bytes()))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.chmod(0o400)


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@claim(PAGE, "the manifest and its digest, the digest of `model.onnx`, and the names and sizes of all files of the")
@claim(
    PAGE,
    "size, inode, device, and the time (in nanoseconds)",
    "a mode that is set, a new name, or a backup's hard link is no",
)
@claim(PAGE, 'with `verify="content"`, also the digest of every file, of the entry and of the model')
@claim(PAGE, '`verify="content"` notices all of these')
@pytest.mark.parametrize(("damage", "by_status", "by_content"), [
    (longer, "made", "made"), (another_graph, "made", "made"), (another_manifest, "made", "made"),
    (one_file_more, "made", "made"), (another_weight, "used", "made"), (another_time, "made", "made"),
    (another_content, "used", "made"), (another_mode_and_name, "used", "used"),
])  # fmt: skip
def test_when_an_entry_is_not_used(
    damage: Callable[[Path, Path], None], by_status: str, by_content: str, model: str, tmp_path: Path
) -> None:
    data = Path(model).with_suffix(".data")
    os.utime(data, ns=(0, Path(model).stat().st_mtime_ns))
    loaded(model, tmp_path / "cache", verify="content")
    (entry,) = entries(tmp_path / "cache")
    damage(entry, Path(model))
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    for file in entry.iterdir():
        os.utime(tmp_path / "copy" / entry.name / file.name, ns=(0, file.stat().st_mtime_ns))
    assert loaded(model, tmp_path / "cache").cache == by_status
    assert loaded(model, tmp_path / "copy", verify="content").cache == by_content
