"""Models of onnxruntime-genai itself on fused weights: the builder's, and one of several files."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import genai_models
import numpy as np
import onnx
import pytest
from real_support import needs, qoperator_twin

from ort_qdq_plugin import Options, StockReason, activate, deactivate

pytestmark = needs("onnxruntime_genai", "torch", "transformers", "onnx_ir")

PROMPT = [3, 141, 59, 26, 5]
LENGTH = 60
FUSED_BY_STOCK = ("symmetric", "asymmetric", "tied", "float16")
LEFT_BY_STOCK = ("gptq", "gptq_signed", "float16_gptq")
PREFIX = "ort-qdq-genai-"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of temporary files; nothing of ours may be left there."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    deactivate()
    gc.collect()
    assert left_in(folder) == []


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(PREFIX))


def genai() -> Any:
    import onnxruntime_genai

    return onnxruntime_genai


def load(folder: Path | Any, **options: Any) -> Any:
    from ort_qdq_plugin.genai import load

    return load(folder, options=Options(strict=True, **options))


def reports(model: Any) -> Any:
    from ort_qdq_plugin.genai import report_of

    return report_of(model)


def tokens(model: Any) -> list[int]:
    og = genai()
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=LENGTH, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def heard(model: Any) -> list[int]:
    """What a whisper model makes of some noise."""
    og = genai()
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=30, do_sample=False)
    generator = og.Generator(model, params)
    noise = np.random.default_rng(0).standard_normal((1, 80, 3000)).astype(np.float32)
    generator.set_model_input("audio_features", noise)
    generator.append_tokens([1])
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


@pytest.fixture
def twin(built: Path, tmp_path: Path) -> Callable[[str], str]:
    """The folder of a variant's QOperator twin."""

    def made(variant: str) -> str:
        folder = tmp_path / f"twin-{variant}"
        shutil.copytree(built / variant, folder)
        for path in folder.glob("*.onnx"):
            genai_models.save_in_place(qoperator_twin(onnx.load(path)), path)
        return str(folder)

    return made


@pytest.mark.parametrize("variant", FUSED_BY_STOCK)
def test_generates_what_stock_does_where_it_fuses(variant: str, built: Path) -> None:
    model = load(built / variant)
    assert all(report.fused and not report.unfused for report in reports(model).values())
    assert tokens(model) == tokens(genai().Model(str(built / variant)))


@pytest.mark.parametrize("variant", [*FUSED_BY_STOCK, *LEFT_BY_STOCK])
def test_generates_what_the_qoperator_twin_does(variant: str, built: Path, twin: Callable[[str], str]) -> None:
    ours = tokens(load(built / variant))
    assert ours == tokens(genai().Model(twin(variant)))
    # With a tied embedding, a random model repeats itself.
    assert len(set(ours)) > 10 or variant == "tied"


@pytest.mark.parametrize("variant", [*FUSED_BY_STOCK, *LEFT_BY_STOCK])
def test_an_exported_folder_generates_what_the_prepared_one_does(variant: str, built: Path, tmp_path: Path) -> None:
    from ort_qdq_plugin.genai import export

    written = export(built / variant, tmp_path / "out")
    assert all(report.route == "export" and not report.unfused for report in written.values())
    stock = genai().Model(str(tmp_path / "out"))
    assert reports(stock) == {}
    assert tokens(stock) == tokens(load(built / variant))


def test_what_was_warmed_is_found(built: Path, tmp_path: Path) -> None:
    from ort_qdq_plugin.genai import warm

    for name in ("symmetric", "whisper"):
        made = warm(built / name, options=Options(cache_dir=tmp_path / "cache"))
        assert {report.cache for report in made.values()} == {"made"}
        found = reports(load(built / name, cache_dir=tmp_path / "cache"))
        assert found.keys() == made.keys()
        assert {report.cache for report in found.values()} == {"used"}


def test_an_exported_model_of_several_files(built: Path, tmp_path: Path) -> None:
    from ort_qdq_plugin.genai import export

    assert sorted(export(built / "whisper", tmp_path / "out")) == ["decoder.onnx", "encoder.onnx"]
    assert heard(genai().Model(str(tmp_path / "out"))) == heard(load(built / "whisper"))


def test_the_builders_own_qoperator_model(built: Path) -> None:
    assert tokens(load(built / "qoperator")) == tokens(genai().Model(str(built / "qoperator")))


def test_a_model_of_several_files(built: Path, twin: Callable[[str], str]) -> None:
    model = load(built / "whisper")
    assert sorted(reports(model)) == ["decoder.onnx", "encoder.onnx"]
    assert all(report.fused and not report.unfused for report in reports(model).values())
    assert heard(model) == heard(genai().Model(twin("whisper")))


def test_the_folder_lives_as_long_as_the_model(built: Path, temporary: Path) -> None:
    from ort_qdq_plugin.genai import prepare

    config = prepare(built / "gptq")
    assert len(left_in(temporary)) == 1
    model = genai().Model(config)
    del config
    gc.collect()
    (folder,) = left_in(temporary)
    assert (temporary / folder / "tokenizer.json").read_bytes() == (built / "gptq" / "tokenizer.json").read_bytes()
    assert reports(model)["model.onnx"].route == "by path"
    del model
    gc.collect()
    assert left_in(temporary) == []


def test_with_a_cache(built: Path, tmp_path: Path) -> None:
    first = load(built / "symmetric", cache_dir=tmp_path / "cache")
    second = load(built / "symmetric", cache_dir=tmp_path / "cache")
    shared = load(built / "symmetric", cache_dir=tmp_path / "cache", share_weights=True)
    assert [reports(model)["model.onnx"].cache for model in (first, second, shared)] == ["made", "used", "made"]
    assert "pack" not in reports(second)["model.onnx"].seconds
    assert reports(shared)["model.onnx"].shared_bytes > 0
    expected = tokens(genai().Model(str(built / "symmetric")))
    assert tokens(first) == tokens(second) == tokens(shared) == expected


def test_a_cache_on_another_file_system(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    expected = tokens(load(built / "gptq"))
    monkeypatch.setattr(os, "link", no_link)
    assert tokens(load(built / "gptq", cache_dir=tmp_path / "cache")) == expected


def test_an_unmodified_program(built: Path, tmp_path: Path) -> None:
    def said(**variables: str) -> tuple[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_QDQ")}
        command = [sys.executable, str(Path(__file__).with_name("generate.py")), str(built / "symmetric")]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout, done.stderr

    cache = {"ORT_QDQ_PLUGIN_CACHE_DIR": str(tmp_path / "cache")}
    plain, _ = said()
    outputs = [said(ORT_QDQ_PLUGIN="1", ORT_QDQ_PLUGIN_LOG="info", **extra) for extra in ({}, cache, cache)]
    assert {out for out, _ in outputs} == {plain}
    assert ["11 fused" in log for _, log in outputs] == [True] * 3
    assert ["pack" in log.rpartition(";")[2] for _, log in outputs] == [True, True, False]


def test_models_of_an_activated_process(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    og, folder = genai(), str(built / "gptq")
    activate(Options(strict=True))
    config = og.Config(folder)
    config.overlay('{"search": {"top_k": 3}}')
    config.clear_providers()
    models = [og.Model(folder), og.Model(config)]
    assert [len(reports(model)["model.onnx"].fused) for model in models] == [11, 11]
    deactivate()
    assert reports(og.Model(folder)) == {}
    assert not caplog.records


def test_accuracy_level_of_the_configuration(built: Path, tmp_path: Path) -> None:
    folder = changed(built, tmp_path, lambda options: options.update({"session.qdq_matmulnbits_accuracy_level": "0"}))
    model = load(folder, cache_dir=tmp_path / "cache")
    (entry,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    nodes = onnx.load(entry / "model.onnx", load_external_data=False).graph.node
    levels = {item.i for node in nodes for item in node.attribute if item.name == "accuracy_level"}
    assert levels <= {0}
    assert reports(model)["model.onnx"].fused


def changed(built: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The gptq model with other session options."""
    folder = tmp_path / "changed"
    shutil.copytree(built / "gptq", folder)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    change(config["model"]["decoder"]["session_options"])
    path.write_text(json.dumps(config))
    return folder


# ---- what is left to stock -------------------------------------------------------------------------


def untouched(given: Any, caplog: pytest.LogCaptureFixture, reason: StockReason, warnings: int = 0) -> None:
    """The model is created as stock creates it; its report has this reason, and the log so many warnings."""
    from ort_qdq_plugin import genai as ours

    model = ours.load(given)
    assert {(report.route, report.stock_reason) for report in reports(model).values()} == {("stock", reason)}
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == warnings
    tokens(model)


def test_a_provider_that_wants_qdq(built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ort_qdq_plugin import genai as ours

    folder = changed(built, tmp_path, lambda options: options.update(provider_options=[{"OpenVINO": {}}]))
    config = ours.prepare(folder)
    assert isinstance(config, genai().Config)
    assert [report.stock_reason for report in reports(config).values()] == [StockReason.PROVIDER]
    assert not caplog.records


def test_models_given_as_bytes(built: Path, caplog: pytest.LogCaptureFixture) -> None:
    activate()
    config = genai().Config(str(built / "gptq"))
    config.add_model_data("model.onnx", (built / "gptq" / "model.onnx").read_bytes())
    untouched(config, caplog, StockReason.GENAI_MODEL_DATA)


def test_a_custom_ops_library(built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ort_qdq_plugin import genai as ours

    folder = changed(built, tmp_path, lambda options: options.update(custom_ops_library="libnothing.so"))
    with pytest.raises(RuntimeError, match="libnothing"):
        ours.load(folder)
    assert not caplog.records


def test_a_full_disk(built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    untouched(built / "symmetric", caplog, StockReason.ERROR, warnings=1)


def test_one_of_several_files_that_fails(
    built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then none is prepared: the model is what it was."""
    from ort_qdq_plugin import genai as ours
    from ort_qdq_plugin.genai import models

    entry_for: Any = models._entry_for

    def failing(path: str, *rest: Any) -> Any:
        if "encoder" in path:
            raise OSError(5, "Input/output error")
        return entry_for(path, *rest)

    monkeypatch.setattr(models, "_entry_for", failing)
    model = ours.load(built / "whisper")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert sorted(reports(model)) == ["decoder.onnx", "encoder.onnx"]
    assert {(report.route, report.stock_reason) for report in reports(model).values()} == {("stock", StockReason.ERROR)}
    assert heard(model) == heard(genai().Model(str(built / "whisper")))


def test_a_read_only_folder(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    shutil.copytree(built / "gptq", folder)
    for path in folder.iterdir():
        path.chmod(0o400)
    folder.chmod(0o500)
    try:
        assert reports(load(folder))["model.onnx"].fused
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("given", ["nothing", "no JSON", "no object", "unknown keys", "outside", "missing model", "path", 3])
def test_what_is_no_model_fails_as_it_does_in_stock(
    given: str | int, built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(built / "gptq", folder)
    config = folder / "genai_config.json"
    plain = json.loads(config.read_text())
    if given == "nothing":
        config.unlink()
    elif given == "no JSON":
        config.write_text("{")
    elif given == "no object":
        config.write_text("[1]")
    elif given == "unknown keys":
        config.write_text(json.dumps({"model": {**plain["model"], "unknown": 1}}))
    elif given == "outside":
        plain["model"]["decoder"]["filename"] = "../gptq/model.onnx"
        config.write_text(json.dumps(plain))
    elif given == "missing model":
        (folder / "model.onnx").unlink()
    argument = folder if given == "path" else str(folder) if isinstance(given, str) else given
    og = genai()
    with pytest.raises((RuntimeError, TypeError)) as stock:
        og.Model(argument)
    activate()
    with pytest.raises(stock.type) as ours:
        og.Model(argument)
    assert str(ours.value) == str(stock.value)
    assert len(caplog.records) <= 1


# ---- processes -------------------------------------------------------------------------------------

LOAD = """
import sys
from ort_qdq_plugin import Options, genai
model = genai.load(sys.argv[1], options=Options(strict=True, cache_dir=sys.argv[2] or None))
print(genai.report_of(model)["model.onnx"].cache, flush=True)
"""


def loading(folder: Path, cache: Path | str = "") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LOAD, str(folder), str(cache)], stdout=subprocess.PIPE, text=True)


def test_processes_at_once_prepare_once(built: Path, tmp_path: Path) -> None:
    processes = [loading(built / "symmetric", tmp_path / "cache") for _ in range(8)]
    ways = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert ways == ["made"] + ["used"] * 7


def test_what_killed_processes_leave_is_removed(built: Path, temporary: Path) -> None:
    start = time.perf_counter()
    loading(built / "symmetric").communicate(timeout=120)
    seconds = time.perf_counter() - start
    rng = random.Random(0)
    for _ in range(int(os.environ.get("ORT_QDQ_KILLS", "6"))):
        process = loading(built / "symmetric")
        time.sleep(rng.uniform(0.3, 1.1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    loading(built / "symmetric").communicate(timeout=120)
    assert left_in(temporary) == []
