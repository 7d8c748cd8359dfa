"""Models of onnxruntime-genai itself on fused weights: the builder's, and one of several files."""

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
from ort_qdq_plugin.genai import export, load, prepare, report_of, warm
from ort_qdq_plugin.system.platform import files
from tests.genai import small_model
from tests.support import refuse

og = pytest.importorskip("onnxruntime_genai")
pytestmark = needs("torch", "transformers", "onnx_ir")

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


def stock(folder: Path) -> Any:
    return og.Model(str(folder))


def loaded(folder: Path, **options: Any) -> Any:
    return load(folder, options=Options(strict=True, **options))


def report(model: Any) -> Any:
    """Of a model of one file."""
    return report_of(model)["model.onnx"]


def tokens(model: Any) -> list[int]:
    return small_model.tokens(model, (3, 141, 59, 26, 5), 60)


def heard(model: Any) -> list[int]:
    """What a whisper model makes of some noise."""
    noise = np.random.default_rng(0).standard_normal((1, 80, 3000)).astype(np.float32)
    return small_model.tokens(model, (1,), 30, audio_features=noise)


@pytest.fixture
def twin(built: Path, tmp_path: Path) -> Callable[[str], Any]:
    """A variant's QOperator twin."""

    def made(variant: str) -> Any:
        folder = shutil.copytree(built / variant, tmp_path / f"twin-{variant}")
        for path in folder.glob("*.onnx"):
            genai_models.save_in_place(qoperator_twin(onnx.load(path)), path)
        return stock(folder)

    return made


@pytest.mark.parametrize("variant", [*FUSED_BY_STOCK, *LEFT_BY_STOCK])
def test_generates_what_the_qoperator_twin_does(
    variant: str, built: Path, twin: Callable[[str], Any], tmp_path: Path
) -> None:
    """And what stock does where it fuses; and stock generates that from an exported folder."""
    model = loaded(built / variant)
    ours = tokens(model)
    assert ours == tokens(twin(variant))
    # With a tied embedding, a random model repeats itself.
    assert len(set(ours)) > 10 or variant == "tied"
    if variant in FUSED_BY_STOCK:
        assert report(model).fused
        assert not report(model).unfused
        assert ours == tokens(stock(built / variant))
    written = export(built / variant, tmp_path / "out")
    assert all(one.route == "export" and not one.unfused for one in written.values())
    exported = stock(tmp_path / "out")
    assert report_of(exported) == {}
    assert tokens(exported) == ours


def test_what_was_warmed_is_found(built: Path, tmp_path: Path) -> None:
    for name in ("symmetric", "whisper"):
        made = warm(built / name, options=Options(cache_dir=tmp_path / "cache"))
        assert {one.cache for one in made.values()} == {"made"}
        found = report_of(loaded(built / name, cache_dir=tmp_path / "cache"))
        assert found.keys() == made.keys()
        assert {one.cache for one in found.values()} == {"used"}


def test_the_builders_own_qoperator_model(built: Path) -> None:
    assert tokens(loaded(built / "qoperator")) == tokens(stock(built / "qoperator"))


def test_a_model_of_several_files(built: Path, twin: Callable[[str], Any], tmp_path: Path) -> None:
    model = loaded(built / "whisper")
    assert sorted(report_of(model)) == ["decoder.onnx", "encoder.onnx"]
    assert all(one.fused and not one.unfused for one in report_of(model).values())
    assert heard(model) == heard(twin("whisper"))
    assert sorted(export(built / "whisper", tmp_path / "out")) == ["decoder.onnx", "encoder.onnx"]
    assert heard(stock(tmp_path / "out")) == heard(model)


def test_an_overlay_of_one_stage(built: Path) -> None:
    """It replaces that stage's session options, also after `prepare`."""
    config = prepare(built / "whisper")
    expected = heard(og.Model(config))
    for options in ({"session.qdq_matmulnbits_accuracy_level": "0"}, {"session.disable_quant_qdq": "1"}):
        config.overlay(json.dumps({"model": {"encoder": {"session_options": options}}}))
        model = og.Model(config)
        assert heard(model) == expected
        reports = report_of(model)
        assert reports["decoder.onnx"].fused
        assert bool(reports["encoder.onnx"].fused) == ("session.disable_quant_qdq" not in options)


def test_the_folder_lives_as_long_as_the_model(built: Path, temporary: Path) -> None:
    config = prepare(built / "gptq")
    assert len(left_in(temporary)) == 1
    model = og.Model(config)
    del config
    gc.collect()
    (folder,) = left_in(temporary)
    assert (temporary / folder / "tokenizer.json").read_bytes() == (built / "gptq" / "tokenizer.json").read_bytes()
    assert report(model).route == "by path"
    del model
    gc.collect()
    assert left_in(temporary) == []


def test_a_cache_on_another_file_system(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokens(loaded(built / "gptq"))
    refuse(monkeypatch, os, "link", 18)
    assert tokens(loaded(built / "gptq", cache_dir=tmp_path / "cache")) == expected


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
    activate(Options(strict=True))
    config = og.Config(str(built / "gptq"))
    config.overlay('{"search": {"top_k": 3}}')
    config.clear_providers()
    models = [stock(built / "gptq"), og.Model(config)]
    assert [len(report(model).fused) for model in models] == [11, 11]
    deactivate()
    assert report_of(stock(built / "gptq")) == {}
    assert not caplog.records


def test_accuracy_level_of_the_configuration(built: Path, tmp_path: Path) -> None:
    folder = changed(built, tmp_path, {"session.qdq_matmulnbits_accuracy_level": "0"})
    assert report(loaded(folder, cache_dir=tmp_path / "cache")).fused
    (path,) = (tmp_path / "cache").glob("*/model.onnx")
    nodes = onnx.load(path, load_external_data=False).graph.node
    assert {item.i for node in nodes for item in node.attribute if item.name == "accuracy_level"} <= {0}


def changed(built: Path, tmp_path: Path, options: dict[str, Any]) -> Path:
    """The gptq model with other session options."""
    folder = shutil.copytree(built / "gptq", tmp_path / "changed")
    genai_models.change_json(
        folder / "genai_config.json", lambda config: config["model"]["decoder"]["session_options"].update(options)
    )
    return folder


# ---- what is left to stock -------------------------------------------------------------------------


def test_a_provider_that_wants_qdq(built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Or a library of operators, which is not there."""
    config = prepare(changed(built, tmp_path, {"provider_options": [{"QNN": {}}]}))
    assert isinstance(config, og.Config)
    assert [report.stock_reason for report in report_of(config).values()] == [StockReason.PROVIDER]
    shutil.rmtree(tmp_path / "changed")
    with pytest.raises(RuntimeError, match="libnothing"):
        load(changed(built, tmp_path, {"custom_ops_library": "libnothing.so"}))
    assert not caplog.records


@pytest.mark.parametrize(
    ("case", "reason"), [("models given as bytes", StockReason.GENAI_MODEL_DATA), ("a full disk", StockReason.ERROR)]
)
def test_what_is_created_as_stock_creates_it(
    case: str, reason: StockReason, built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: Any = built / "symmetric"
    if case == "a full disk":
        refuse(monkeypatch, files, "reserve", 28)
    else:
        activate()
        given = og.Config(str(built / "gptq"))
        given.add_model_data("model.onnx", (built / "gptq" / "model.onnx").read_bytes())
    model = load(given)
    assert {(one.route, one.stock_reason) for one in report_of(model).values()} == {("stock", reason)}
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == (case == "a full disk")
    tokens(model)


def test_one_of_several_files_that_fails(
    built: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then none is prepared: the model is what it was."""
    from ort_qdq_plugin.genai import prepared

    entry_for: Any = prepared._entry_for

    def failing(path: str, *rest: Any) -> Any:
        if "encoder" in path:
            raise OSError(5, "Input/output error")
        return entry_for(path, *rest)

    monkeypatch.setattr(prepared, "_entry_for", failing)
    model = load(built / "whisper")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert sorted(report_of(model)) == ["decoder.onnx", "encoder.onnx"]
    assert {(one.route, one.stock_reason) for one in report_of(model).values()} == {("stock", StockReason.ERROR)}
    assert heard(model) == heard(stock(built / "whisper"))


def test_a_read_only_folder(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built / "gptq", tmp_path / "read-only")
    for path in folder.iterdir():
        path.chmod(0o400)
    folder.chmod(0o500)
    try:
        assert report(loaded(folder)).fused
    finally:
        folder.chmod(0o700)


def spoil(folder: Path, how: str) -> None:
    config = folder / "genai_config.json"
    if how in ("nothing", "missing model"):
        (config if how == "nothing" else folder / "model.onnx").unlink()
    elif how in ("{", "[1]"):
        config.write_text(how)
    elif how == "unknown keys":
        genai_models.change_json(config, lambda plain: plain["model"].update(unknown=1))
    else:
        genai_models.change_json(config, lambda plain: plain["model"]["decoder"].update(filename=how))


@pytest.mark.parametrize("given", ["nothing", "missing model", "{", "[1]", "unknown keys", "../gptq/model.onnx", Path(), 3])
def test_what_is_no_model_fails_as_it_does_in_stock(
    given: str | Path | int, built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    argument: Any = built / "gptq" if isinstance(given, Path) else given
    if isinstance(given, str):
        argument = str(shutil.copytree(built / "gptq", tmp_path / "bad"))
        spoil(tmp_path / "bad", given)
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        og.Model(argument)
    activate()
    with pytest.raises(theirs.type) as ours:
        og.Model(argument)
    assert str(ours.value) == str(theirs.value)
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
