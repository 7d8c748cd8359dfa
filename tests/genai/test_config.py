"""What is read of a genai_config.json, and what is written in its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin import StockReason
from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.genai.calls import Call, config_after
from ort_qdq_plugin.genai.config import (
    CONFIG_NAME,
    ModelFile,
    model_files,
    overlaid,
    read_config,
    rewritten,
    settings_overlay,
)
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, PARALLEL_KEY, config_entry
from tests.support import refusing

LEVEL_0 = {ACCURACY_KEY: "0"}


def config(**model: Any) -> dict[str, Any]:
    return {"model": {"type": "llama", **model}, "search": {"top_k": 1}}


def test_every_onnx_file_once() -> None:
    stages = [{"first": {"filename": "a.onnx"}}, {"second": {"filename": "sub/b.ONNX"}}, {"again": {"filename": "a.onnx"}}]
    given = config(
        decoder={"filename": "d.onnx", "pipeline": stages},
        vision={"filename": "v.onnx", "config_filename": "processor.json"},
        speech={"filename": "s.bin"},
        encoder={"filename": 7},
    )
    assert [file.filename for file in model_files(given)] == ["d.onnx", "a.onnx", "sub/b.ONNX", "v.onnx"]


def test_whose_session_options_a_file_has() -> None:
    decoder = {"filename": "d.onnx", "session_options": {**LEVEL_0, "log_id": "x"}}
    own = {"filename": "e.onnx", "session_options": {"intra_op_num_threads": 2}}
    inheriting = {**own, "filename": "i.onnx", "inherit_session_options": True}
    others = {"embedding": {"filename": "m.onnx"}, "draft": {"filename": "f.onnx"}}
    files = model_files(config(decoder=decoder, encoder=own, vision=inheriting, **others))
    options = {file.filename: file.session_options for file in files}
    assert options["f.onnx"] == {}  # a decoder itself
    assert options["d.onnx"] == options["m.onnx"] == decoder["session_options"]
    assert options["e.onnx"] == {"intra_op_num_threads": 2}
    assert options["i.onnx"] == {**LEVEL_0, "log_id": "x", "intra_op_num_threads": 2}


@pytest.mark.parametrize("filename", ["/d.onnx", "../d.onnx", "a/../../d.onnx", "a\\..\\d.onnx"])
def test_files_outside_the_folder_are_refused(filename: str) -> None:
    with refusing("not below"):
        model_files(config(decoder={"filename": filename}))


def test_to_session_options() -> None:
    given = {**LEVEL_0, "graph_optimization_level": "ORT_ENABLE_BASIC", "intra_op_num_threads": 3, "log_id": "x"}
    made = ModelFile("d.onnx", given).to_session_options()
    assert (made.graph_optimization_level.name, made.intra_op_num_threads) == ("ORT_ENABLE_BASIC", 3)
    assert config_entry(made, ACCURACY_KEY) == "0"


@pytest.mark.parametrize(
    "options", [{"graph_optimization_level": "FAST"}, {"intra_op_num_threads": "many"}, {ACCURACY_KEY: 4}, {"a.b": None}]
)
def test_session_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with refusing(r"d\.onnx"):
        ModelFile("d.onnx", options).to_session_options()


def test_providers() -> None:
    given: dict[str, Any] = {
        "provider_options": [{"cuda": {}}, {"openvino": {}}, {"WebGPUExecutionProvider": {}}, {"my": {}}]
    }
    names = ("CUDAExecutionProvider", "OpenVINOExecutionProvider", "WebGpuExecutionProvider", "myExecutionProvider")
    assert (ModelFile("d.onnx", given).providers, ModelFile("d.onnx", {}).providers) == (names, ())


def test_rewritten() -> None:
    given = config(
        decoder={"filename": "d.onnx", "session_options": {"log_id": "x"}},
        vision={"filename": "v.onnx", "session_options": {PARALLEL_KEY: "0"}},
        embedding={"filename": "d.onnx"},
    )
    before = json.dumps(given)
    made = json.loads(rewritten(given, {"d.onnx": "new/m.onnx", "v.onnx": "old/v.onnx"}, {}))
    assert json.dumps(given) == before
    assert made["model"]["decoder"] == {"filename": "new/m.onnx", "session_options": {"log_id": "x", PARALLEL_KEY: "1"}}
    assert made["model"]["vision"] == {"filename": "old/v.onnx", "session_options": {PARALLEL_KEY: "0"}}
    assert made["model"]["embedding"] == {"filename": "new/m.onnx"}
    assert made["search"] == given["search"]


def test_rewritten_with_entries() -> None:
    """They are those of all sessions, also of those that have the decoder's."""
    given = config(
        decoder={"filename": "d.onnx"},
        vision={"filename": "v.onnx", "session_options": {ACCURACY_KEY: "2", "log_id": "x"}},
        embedding={"filename": "e.onnx"},
    )
    names = {name: name for name in ("d.onnx", "v.onnx", "e.onnx")}
    model = json.loads(rewritten(given, names, LEVEL_0))["model"]
    assert model["decoder"]["session_options"] == {"provider_options": [], PARALLEL_KEY: "1", **LEVEL_0}
    assert model["vision"]["session_options"] == {"log_id": "x", PARALLEL_KEY: "1", **LEVEL_0}
    assert model["embedding"] == {"filename": "e.onnx"}


@pytest.mark.parametrize("data", [b"{", b"[]", b"[" * 100_000, b"\xff", b'{"model": {}}'])
def test_read_config(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_config(str(tmp_path))
    (tmp_path / CONFIG_NAME).write_bytes(data)
    with refusing(None if b"model" in data else CONFIG_NAME):
        assert read_config(str(tmp_path)) == {"model": {}}


def test_what_an_overlay_changes() -> None:
    """Sections that are decoders keep their session options, others do not. Providers are not added."""
    options: dict[str, Any] = {"session_options": {**LEVEL_0, "provider_options": [{"cuda": {}}]}}
    sections = {name: {"filename": f"{name}.onnx", **options} for name in ("decoder", "draft", "encoder", "vision")}
    changed: dict[str, Any] = {"session_options": {"log_id": "x", "provider_options": [{"dml": {}}]}}
    overlay = {"model": dict.fromkeys(("decoder", "draft", "encoder", "embedding"), changed), "search": {"top_k": 2}}
    before = json.dumps([config(**sections), overlay])
    given = json.loads(before)
    made = overlaid(*given)
    assert json.dumps(given) == before
    found = {name: section["session_options"] for name, section in made["model"].items() if name != "type"}
    assert found == {
        "decoder": {**options["session_options"], "log_id": "x"},
        "draft": {**options["session_options"], "log_id": "x"},
        "encoder": {"log_id": "x"},
        "vision": options["session_options"],
        "embedding": {"log_id": "x"},
    }
    assert (made["search"], made["model"]["encoder"]["filename"]) == ({"top_k": 2}, "encoder.onnx")
    assert overlaid({"a": [1], "model": 1}, {"a": [2], "model": {"decoder": 3}}) == {"a": [1, 2], "model": {"decoder": 3}}


def test_what_is_said_again_after_overlays() -> None:
    options: dict[str, Any] = {"session_options": {"log_id": "x", "provider_options": []}}
    before = config(**{name: {"filename": f"{name}.onnx", **options} for name in ("decoder", "encoder", "vision")})
    for same in (before, overlaid(before, {"model": {"decoder": {"session_options": {"log_id": "y", **LEVEL_0}}}})):
        assert settings_overlay(before, same, LEVEL_0) == {}
    level_2: dict[str, Any] = {"session_options": {ACCURACY_KEY: "2"}}
    after = overlaid(before, {"model": {"decoder": level_2, "encoder": level_2}})
    sections = settings_overlay(before, after, LEVEL_0)["model"]
    assert sections == {
        "decoder": {"session_options": LEVEL_0},
        "encoder": {"session_options": {PARALLEL_KEY: "1", **LEVEL_0}},
    }


def test_what_decides() -> None:
    """What a file is prepared by, and nothing else."""
    given: dict[str, Any] = {"intra_op_num_threads": 2, "log_id": "x", "provider_options": [{"cuda": {"a": "b"}}], **LEVEL_0}
    file = ModelFile("d.onnx", given)
    same: dict[str, Any] = {**LEVEL_0, "provider_options": [{"CUDAExecutionProvider": {}}]}
    assert file.decides == ModelFile("d.onnx", same).decides
    others: list[dict[str, Any]] = [
        {ACCURACY_KEY: "1"},
        {"graph_optimization_level": "ORT_DISABLE_ALL"},
        {"provider_options": []},
    ]
    for other in others:
        assert file.decides != ModelFile("d.onnx", {**given, **other}).decides


OVERLAY = '{"model": {"decoder": {"session_options": {"provider_options": [{"dml": {}}]}}}}'
TOLD: list[tuple[list[Call], list[str]]] = [
    ([], ["CUDA"]),
    ([Call("clear_providers", ())], []),
    ([Call("clear_providers", ()), Call("append_provider", ("QNN",))], ["QNN"]),
    ([Call("append_provider", (), {"provider_name": "cpu"})], ["CUDA", "CPU"]),
    # onnxruntime-genai takes no providers from overlays.
    ([Call("overlay", (OVERLAY,))], ["CUDA"]),
    ([Call("set_decoder_provider_options_hardware_device_id", ("cuda", 1))], ["CUDA"]),
]


@pytest.mark.parametrize(("calls", "providers"), TOLD)
def test_what_a_configuration_is_told(calls: list[Call], providers: list[str]) -> None:
    decoder = {"filename": "d.onnx", "session_options": {"provider_options": [{"cuda": {}}]}}
    (file,) = model_files(config_after(calls, config(decoder=decoder)))
    assert file.providers == tuple(f"{provider}ExecutionProvider" for provider in providers)


@pytest.mark.parametrize(("call", "reason"), [
    (Call("add_model_data", ("d.onnx", b"")), StockReason.GENAI_MODEL_DATA),
    (Call("overlay", ('{"model": {"decoder": {"filename": "e.onnx"}}}',)), StockReason.GENAI_OVERLAY),
])  # fmt: skip
def test_what_leaves_a_model_to_stock(call: Call, reason: StockReason) -> None:
    with pytest.raises(LeaveToStock) as raised:
        config_after([call], config(decoder={"filename": "d.onnx"}))
    assert raised.value.reason is reason


def test_an_overlay_that_is_no_object() -> None:
    with refusing("overlay"):
        config_after([Call("overlay", ("[]",))], config())
