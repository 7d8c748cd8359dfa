"""`warm` and `cache`: what they make, show and remove, and what they leave alone."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ort_qdq_plugin import Options, Report, StockReason, create_session
from ort_qdq_plugin.cache.manifest import Manifest, digest_of
from tests.cache.support import PACKED, entries, load, saved
from tests.cli.support import Here, apart, on_terminal
from tests.support import CPU, missing, save, stack, unquantized


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [Path(save(stack(2, 256, seed=name), tmp_path, "external", name)) for name in ("a", "b")]  # type: ignore[arg-type]


@pytest.fixture
def warmed(models: list[Path], cache: Path, here: Here) -> Path:
    """A cache with both models; the second one has changed since."""
    for model in models:
        here.said("warm", model, "--dir", cache)
    os.utime(models[1])
    return cache


def test_a_model_that_was_warmed_is_found(models: list[Path], cache: Path) -> None:
    done = apart("warm", models[0], ORT_QDQ_PLUGIN_CACHE_DIR=str(cache))
    assert (done.code, done.err) == (0, "")
    assert "is in the cache now" in done.out
    assert load(models[0], cache).report.cache == "used"
    assert "was there already" in apart("warm", models[0], "--dir", cache).out


def test_the_models_of_a_folder(tmp_path: Path, cache: Path, here: Here) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save(stack(2, 256), folder, "external")
    (folder / "float.onnx").write_bytes(unquantized().SerializeToString())
    names = {"decoder": {"filename": "model.onnx"}, "encoder": {"filename": "float.onnx"}}
    (folder / "genai_config.json").write_text(json.dumps({"model": names}))
    for outcome in ("is in the cache now", "was there already"):
        assert here.said("warm", folder, "--dir", cache).splitlines() == [
            f"{folder / 'model.onnx'}: {outcome}: {cache}",
            f"{folder / 'float.onnx'}: left to stock ONNX Runtime: {StockReason.NOT_QUANTIZED}",
        ]
    (item,) = json.loads(here.said("cache", "list", "--dir", cache, "--json"))
    assert (item["model"], item["stored"]["hits"]) == (str(folder / "model.onnx"), 0)
    (folder / "float.onnx").unlink()
    said = here.refused("warm", folder, "--dir", cache)
    assert said == f"ort-qdq warm: {folder / 'float.onnx'}: {missing(folder / 'float.onnx')}\n"


def test_options_are_those_of_the_environment(models: list[Path], cache: Path) -> None:
    apart("warm", models[0], "--dir", cache, "--share-weights", ORT_QDQ_PLUGIN_ACCURACY_LEVEL="0")
    report = load(models[0], cache, accuracy_level=0, share_weights=True).report
    assert (report.cache, report.route) == ("used", "shared")
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("warm m.onnx --dir there", "m.onnx"),
        ("warm m.onnx", "--dir"),
        ("cache list", "--dir"),
        ("cache list --dir there", "there"),
    ],
)
def test_what_cannot_be_done(command: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: Here) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORT_QDQ_PLUGIN_CACHE_DIR", raising=False)
    assert said in here.refused(*command.split())
    assert not list(tmp_path.iterdir())


def test_list_shows_models_hits_and_what_is_wrong(warmed: Path, models: list[Path], here: Here) -> None:
    for _ in range(3):
        load(models[0], warmed)
    said = here.said("cache", "list", "--dir", warmed)
    rows = {line.split()[-1]: line.split() for line in reversed(said.splitlines())}
    assert rows[str(models[0])][-3:-1] == ["3", "ready"]
    assert rows[str(models[1])][-3:-1] == ["0", "unusable"]
    assert f"{models[1]} has changed" in " ".join(said.split())
    items = json.loads(here.said("cache", "list", "--dir", warmed, "--json"))
    assert {item["model"]: item["stored"]["hits"] for item in items} == {str(models[0]): 3, str(models[1]): 0}


@pytest.mark.parametrize("shared", [False, True])
def test_only_loads_count_as_hits(shared: bool, models: list[Path], cache: Path, here: Here) -> None:
    """Neither the `warm` that makes an entry nor one that finds it, nor the load that makes one."""
    share = ["--share-weights"] * shared
    for _ in range(2):
        here.said("warm", models[0], "--dir", cache, *share)
    load(models[1], cache, share_weights=shared)
    for hits in range(3):
        items = json.loads(here.said("cache", "list", "--dir", cache, "--json"))
        found = {item["model"]: item["stored"]["hits"] for item in items}
        assert found == {str(models[0]): hits, str(models[1]): 0}
        load(models[0], cache, share_weights=shared)


def test_verify_compares_content_where_it_was_recorded(models: list[Path], cache: Path, here: Here) -> None:
    load(models[0], cache, verify="content")
    load(models[1], cache)
    assert here.said("cache", "verify", "--dir", cache).count("verified") == 1
    # A byte that is changed behind everybody's back.
    names = [entry / "manifest.json" for entry in entries(cache)]
    (packed,) = (path.with_name(PACKED) for path in names if models[0].name in path.read_text())
    times = packed.stat()
    packed.chmod(0o600)
    with packed.open("r+b") as file:
        file.write(b"\xff\xfe\xfd")
    packed.chmod(0o400)
    os.utime(packed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert f"{packed.name} is damaged" in here.said("cache", "verify", "--dir", cache, code=1)
    assert here.said("cache", "list", "--dir", cache).count("ready") == 2


def test_prune_removes_what_cannot_be_used(warmed: Path, models: list[Path], here: Here) -> None:
    unfinished = warmed / f"{'f' * 32}.0123.tmp"
    unfinished.mkdir()
    (unfinished / "packed-0.bin").write_bytes(b"1" * 10_000)
    (warmed / f"{'e' * 32}.lock").touch()
    (listed,) = (line for line in here.said("cache", "list", "--dir", warmed).splitlines() if line.startswith(f"{warmed}: "))
    assert listed.startswith(f"{warmed}: 2 entries and 2 unfinished, ")
    said = here.said("cache", "prune", "--dir", warmed, "--yes")
    assert said.startswith("Removed 1 entry and 2 unfinished,")
    assert len(entries(warmed)) == 1
    assert not unfinished.exists()
    assert load(models[0], warmed).report.cache == "used"
    assert "nothing to remove" in here.said("cache", "prune", "--dir", warmed, "--yes")


def test_prune_removes_what_was_not_used_for_long(models: list[Path], cache: Path, here: Here) -> None:
    for age, model in enumerate(models):
        load(model, cache)
        for lock in cache.glob("*.lock"):
            os.utime(lock, (lock.stat().st_mtime - 1000 * (2 - age),) * 2)
    items = json.loads(here.said("cache", "list", "--dir", cache, "--json"))
    nbytes = sum(item["stored"]["nbytes"] for item in items)
    here("cache", "prune", "--dir", cache, "--max-bytes", nbytes - 1, "--yes")
    assert load(models[1], cache).report.cache == "used"
    assert len(entries(cache)) == 1


def test_clear_leaves_what_is_in_use_and_what_is_not_its_own(warmed: Path, models: list[Path], here: Here) -> None:
    (warmed / "mine").mkdir()
    (warmed / "mine" / "manifest.json").touch()
    session = create_session(str(models[0]), providers=CPU, options=Options(cache_dir=warmed))
    said = here.said("cache", "clear", "--dir", warmed, "--yes")
    assert ("Removed 1 entry" in said, "1 entry in use" in said) == (True, True)
    del session
    assert "Removed 1 entry" in here.said("cache", "clear", "--dir", warmed, "--yes")
    assert [path.name for path in warmed.iterdir()] == ["mine"]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def devices_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def saying_nothing(path: Path) -> None:
    body = json.dumps({**json.loads(Manifest("", (), Report("stock"), "").to_bytes().partition(b"\n")[2]), "sources": []})
    path.write_bytes(f"{digest_of(body.encode())}\n{body}".encode())


@pytest.mark.parametrize("kind", [fifo, endless, devices_link, saying_nothing])
def test_whatever_is_in_place_of_a_manifest(kind: Callable[[Path], None], cache: Path, here: Here) -> None:
    """It is not waited for, and not read as a whole."""
    (cache / ("f" * 32)).mkdir(0o700, parents=True)
    kind(cache / ("f" * 32) / "manifest.json")
    for action in ("list", "verify"):
        assert here.said("cache", action, "--dir", cache, code=int(action == "verify")).count("unusable") == 1
    assert "Removed 1 entry" in here.said("cache", "prune", "--dir", cache, "--yes")


@pytest.mark.needs("modes")
def test_a_directory_in_which_others_can_replace_entries(cache: Path, here: Here) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    said = here.refused("cache", "list", "--dir", cache)
    assert said == f"ort-qdq cache: {cache}: others can write to it, and it is not sticky\n"


def test_it_asks_before_it_removes(warmed: Path) -> None:
    refused = apart("cache", "clear", "--dir", warmed)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--yes" in refused.err
    asked = on_terminal("cache", "clear", "--dir", warmed, typed="n\n")
    assert (asked.code, "Remove 2 entries? [y/N]" in asked.out) == (0, True)
    assert len(entries(warmed)) == 2
    assert "Removed 2 entries" in on_terminal("cache", "clear", "--dir", warmed, typed="y\n").out
    assert not entries(warmed)


@pytest.mark.parametrize("arguments", [["list", "--max-bytes", "1"], ["prune", "--max-bytes", "-1"]])
def test_sizes_are_for_prune(arguments: list[str], warmed: Path, here: Here) -> None:
    assert "--max-bytes" in here.refused("cache", *arguments, "--dir", warmed)


def test_prepare_makes_what_other_machines_use(tmp_path: Path, here: Here) -> None:
    model, out = saved(stack(2, 128), tmp_path / "model"), tmp_path / "prepared"
    for outcome in ("is prepared now", "was there already"):
        assert here.said("prepare", model, out) == f"{model}: {outcome}: {out}\n"
    assert load(model, None, prepared=out).report.cache == "prepared"
    assert here.said("prepare", saved(unquantized(), tmp_path / "float"), out).count("left to stock") == 1


def test_prepare_takes_one_model(tmp_path: Path, here: Here) -> None:
    none = tmp_path / "none.onnx"
    for wrong, words in ((tmp_path, "a folder"), (none, missing(none))):
        assert words in here.refused("prepare", wrong, tmp_path / "prepared")
        assert not (tmp_path / "prepared").exists()
