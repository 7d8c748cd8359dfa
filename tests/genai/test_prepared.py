"""Configurations that are changed before or after they are prepared: what they say holds, as if it had been in the file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ort_qdq_plugin import Options, Report, StockReason, genai
from ort_qdq_plugin.genai import prepared
from ort_qdq_plugin.genai.config import CONFIG_NAME
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, NO_QDQ_KEY
from tests.genai.small_model import tokens, write_model

og = pytest.importorskip("onnxruntime_genai")

LEVEL_0, UNFUSED = {ACCURACY_KEY: "0"}, {NO_QDQ_KEY: "1"}
CHANGES = [LEVEL_0, UNFUSED, {"graph_optimization_level": "ORT_ENABLE_BASIC"}, {"log_id": "x"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def overlay(**options: Any) -> str:
    return json.dumps({"model": {"decoder": {"session_options": options}}})


def written(folder: Path, to: Path, **options: Any) -> Path:
    """A copy of a model whose file has these session options."""
    made = write_model(to)
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["model"]["decoder"]["session_options"].update(options)
    (made / CONFIG_NAME).write_text(json.dumps(config))
    return made


def logits(model: Any) -> np.ndarray:
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.append_tokens([3, 4, 5])
    return np.array(generator.get_output("logits"))


def report(model: Any) -> Report:
    (one,) = genai.report_of(model).values()
    return one


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after", "between"])
def test_an_overlay_holds_whenever_it_comes(change: dict[str, str], when: str, folder: Path, tmp_path: Path) -> None:
    wanted = genai.load(written(folder, tmp_path / "written", **change))
    config: Any = str(folder)
    if when == "before":
        config = og.Config(str(folder))
        config.overlay(overlay(**change))
    config = genai.prepare(config)
    if when != "before":
        config.overlay(overlay(**change))
    if when == "between":
        config = genai.prepare(config)
    model = og.Model(config)
    assert np.array_equal(logits(model), logits(wanted))
    assert (report(model).stock_reason, len(report(model).fused)) == (report(wanted).stock_reason, len(report(wanted).fused))
    assert (report(model).stock_reason is None) == (change in (LEVEL_0, {"log_id": "x"}))


def test_levels_and_fusing_can_be_told_apart(folder: Path, tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    changes: list[dict[str, str]] = [{}, LEVEL_0, UNFUSED]
    made = [logits(genai.load(written(folder, tmp_path / str(at), **change))) for at, change in enumerate(changes)]
    assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    np.testing.assert_allclose(made[1], made[2], rtol=1e-3, atol=1e-4)


def test_an_overlay_of_something_else_prepares_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = genai.prepare(folder)
    config.overlay(json.dumps({"search": {"max_length": 9}}))
    config.overlay(overlay(intra_op_num_threads=1))
    monkeypatch.setattr(prepared, "_with_folder", None)
    model = og.Model(config)
    assert len(tokens(model, length=9)) == 9
    assert report(model) == report(config)
    assert report(model).fused


@pytest.mark.parametrize("section", ["decoder", "encoder"])
def test_the_options_level_holds_against_overlays(
    section: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what ONNX Runtime fuses itself, too: that level is the last that onnxruntime-genai is told."""
    expected = logits(genai.load(written(folder, tmp_path / "written", **LEVEL_0)))
    content = json.loads((folder / CONFIG_NAME).read_text())
    content["model"]["encoder"] = {"filename": "model.onnx", "session_options": {}}  # models of this type have none
    (folder / CONFIG_NAME).write_text(json.dumps(content))
    config, real, told = genai.prepare(folder, options=Options(accuracy_level=0)), og.Config.overlay, list[str]()

    def overlay(config: Any, text: str) -> None:
        told.append(text)
        real(config, text)

    monkeypatch.setattr(og.Config, "overlay", overlay)
    options = {ACCURACY_KEY: "4"} if section == "decoder" else {"log_id": "x"}
    config.overlay(json.dumps({"model": {section: {"session_options": options}}}))
    assert np.array_equal(logits(og.Model(config)), expected)
    assert json.loads(told[-1])["model"][section]["session_options"][ACCURACY_KEY] == "0"
    assert len(told) > 1


def test_a_prepared_configuration_with_other_options(folder: Path, cache: Path) -> None:
    config = genai.prepare(folder)
    level_0 = genai.load(folder, options=Options(accuracy_level=0))
    assert np.array_equal(logits(genai.load(config, options=Options(accuracy_level=0))), logits(level_0))
    again = genai.prepare(config, options=Options(cache_dir=cache))
    assert report(genai.load(again)) == report(again)
    del config
    assert len(tokens(og.Model(again))) == 12


def fill_in_data(config: Any) -> None:
    config.add_model_data("model.onnx", b"no model")


STOCK: list[tuple[Callable[[Any], object], StockReason]] = [
    (lambda config: config.append_provider("QNN"), StockReason.PROVIDER),
    (lambda config: config.set_provider_option("qnn", "backend_path", "x"), StockReason.PROVIDER),
    (fill_in_data, StockReason.GENAI_MODEL_DATA),
    (lambda config: config.overlay(overlay(custom_ops_library="nothing.so")), StockReason.GENAI_CUSTOM_OPS),
    (lambda config: config.overlay('{"model": {"decoder": {"filename": "no.onnx"}}}'), StockReason.GENAI_OVERLAY),
]


@pytest.mark.parametrize(("change", "reason"), STOCK)
def test_what_then_is_left_to_stock_fails_as_in_stock(
    change: Callable[[Any], object], reason: StockReason, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    for config in (og.Config(str(folder)), genai.prepare(folder)):
        change(config)
        with pytest.raises(RuntimeError) as raised:
            og.Model(config)
        said.append(str(raised.value))
    assert said[0] == said[1]
    assert report(genai.prepare(config)).stock_reason is reason
    assert not caplog.records


def test_providers_that_go_let_it_be_fused(folder: Path, tmp_path: Path) -> None:
    config = genai.prepare(written(folder, tmp_path / "written", provider_options=[{"QNN": {}}]))
    assert report(config).stock_reason is StockReason.PROVIDER
    config.set_decoder_provider_options_hardware_device_type("QNN", "npu")
    config.clear_providers()
    assert report(og.Model(config)).fused
    config.append_provider("cpu")
    assert report(genai.prepare(config)).fused


ORDER = """
import sys
{first}
{second}
config = onnxruntime_genai.Config(sys.argv[1])
print([len(report.fused) for report in genai.report_of(genai.prepare(config)).values()])
print([len(report.fused) for report in genai.report_of(genai.load(config)).values()])
"""


@pytest.mark.parametrize("first", ["import onnxruntime_genai", "from ort_qdq_plugin import genai"])
def test_a_configuration_is_known_once_both_are_imported(first: str, folder: Path) -> None:
    """In one order; in the other there is a warning, which says so."""
    lines = ["import onnxruntime_genai", "from ort_qdq_plugin import genai"]
    code = ORDER.format(first=first, second=next(line for line in lines if line != first))
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=120)
    is_known = first == lines[0]
    assert done.stdout.split() == (["[1]"] * 2 if is_known else ["[]"] * 2)
    assert done.stderr.count("Import onnxruntime_genai, then ort_qdq_plugin.genai") == 2 * (not is_known)


def test_a_configuration_that_stock_cannot_read(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text('{"model": {"decoder": {"session_options": {"provider_options": 5}}}}')
    with pytest.raises(RuntimeError) as theirs:
        og.Config(str(folder))
    with pytest.raises(RuntimeError) as ours:
        genai.prepare(folder)
    assert str(ours.value) == str(theirs.value)
