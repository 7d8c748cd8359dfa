"""Which entry of the cache a load looks for: what has one of its own, and what shares one."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options
from ort_qdq_plugin.cache.key import place_of
from ort_qdq_plugin.load.key import key_of
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.system.platform import files, host
from tests.support import quiet, with_entries


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    return path


def asked(model: Path, cache: Path, session_options: Any = None, **options: Any) -> LoadRequest:
    return LoadRequest(str(model), session_options, Options(cache_dir=cache, **options))


def with_entry(key: str, value: str) -> dict[str, Any]:
    return {"session_options": with_entries({key: value})}


def basic() -> dict[str, Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return {"session_options": options}


@pytest.mark.parametrize(
    "change",
    [
        {"options": Options(accuracy_level=0)},
        {"options": Options(block_size=64)},
        {"options": Options(cache_dir="/anywhere", share_weights=True)},
        with_entry("session.qdq_matmulnbits_accuracy_level", "1"),
        with_entry("session.qdq_matmulnbits_block_size", "128"),
        with_entry("session.disable_quant_qdq", "1"),
        with_entry("session.qdqisint8allowed", "1"),
        basic(),
        {"disabled_optimizers": frozenset({"QDQSelectorActionTransformer"})},
        with_entry("session.model_external_initializers_file_folder_path", "/weights"),
        with_entry("session.load_model_format", "ORT"),
    ],
)
def test_what_matters_has_an_entry_of_its_own(model: Path, cache: Path, change: dict[str, Any]) -> None:
    before = asked(model, cache)
    assert place_of(key_of(before._replace(**change))) != place_of(key_of(before))


@pytest.mark.parametrize(("name", "answer"), [("is_arm", True), ("processor", "asimd")])
def test_kernels_of_another_processor_have_an_entry_of_their_own(
    model: Path, cache: Path, name: str, answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "processor", lambda: "asimd asimdhp")
    monkeypatch.setattr(host, "is_arm", lambda: name == "processor")
    before = key_of(asked(model, cache))
    monkeypatch.setattr(host, name, lambda: answer)
    assert place_of(key_of(asked(model, cache))) != place_of(before)


@pytest.mark.parametrize(
    "change",
    [
        {"options": Options(accuracy_level=4, block_size=0)},
        {"options": Options(buffer="memory", spill_dir="/anywhere", threads=3, strict=True)},
        {"options": Options(cache_dir="/elsewhere", cache_max_bytes=0, verify="content")},
        {"options": Options(progress=print)},
        with_entry("session.some", "value"),
        {"session_options": quiet()},
        {"disabled_optimizers": frozenset({"Other"})},
    ],
)
def test_what_does_not_matter_shares_an_entry(model: Path, cache: Path, change: dict[str, Any]) -> None:
    assert key_of(asked(model, cache)._replace(**change)) == key_of(asked(model, cache))


@pytest.mark.parametrize(
    ("what", "plain", "shared"),
    [
        ("ort_qdq_plugin.__version__", True, True),
        ("onnxruntime.__version__", True, True),
        ("ORT_LOAD_CONFIG_FROM_MODEL", True, True),
        ("user", True, True),
        # It matters only for what is pre-packed.
        ("processor", False, True),
    ],
)
def test_surroundings_have_entries_of_their_own(
    model: Path, cache: Path, what: str, plain: bool, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asked(model, cache, share_weights=share) for share in (False, True)]
    before = [key_of(request) for request in requests]
    if what.isupper():
        monkeypatch.setenv(what, "1")
    elif what in ("processor", "user"):
        monkeypatch.setattr(host if what == "processor" else files, what, lambda: "another one")
    else:
        monkeypatch.setattr(what, "another one")
    assert [key_of(request) != key for request, key in zip(requests, before, strict=True)] == [plain, shared]


def test_a_model_has_one_entry_by_all_its_names(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "name.onnx").symlink_to(model)
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = [Path("model.onnx"), Path("./folder/../model.onnx"), tmp_path / "name.onnx", tmp_path / "folder" / "name.onnx"]
    assert {key_of(asked(name, cache)) for name in names} == {key_of(asked(model, cache))}


def test_a_folder_of_data_is_where_it_leads_to(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = with_entry("session.model_external_initializers_file_folder_path", "weights")
    keys = []
    for name in ("one", "two"):
        (tmp_path / name / "weights").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        keys.append(key_of(asked(model, cache, **relative)))
    assert keys[0] != keys[1]


def test_a_file_has_an_entry_of_its_own(model: Path, cache: Path, tmp_path: Path) -> None:
    """Another one at the same place, and the same one at another place."""
    before = key_of(asked(model, cache))
    model.rename(tmp_path / "elsewhere.onnx")
    model.write_bytes(b"a model")
    replaced, moved = key_of(asked(model, cache)), key_of(asked(tmp_path / "elsewhere.onnx", cache))
    assert (place_of(replaced) == place_of(before), replaced == before) == (True, False)
    assert (place_of(moved) == place_of(before), moved[len(place_of(moved)) :] in before) == (False, True)


def test_there_is_no_key_without_a_model(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        key_of(asked(tmp_path / "missing.onnx", cache))
