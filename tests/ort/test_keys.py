"""Entries of SessionOptions, and the variable that has them read from models."""

from pathlib import Path

import onnxruntime as ort
import pytest

from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, BLOCK_SIZE_KEY, config_entry, entry_to_put_back, options_are_in_models
from tests.support import linear, quiet, saved_nodes, with_entries


@pytest.mark.parametrize("value", ["", "0", "a value"])
def test_an_entry_that_is_set(value: str) -> None:
    options = with_entries({"some.key": value})
    assert config_entry(options, "some.key") == value
    assert config_entry(options, "some.other.key") is config_entry(None, "some.key") is None


@pytest.mark.parametrize("value", ["", "0", "a value"])
def test_an_entry_that_was_set_is_put_back_as_it_was(value: str) -> None:
    assert entry_to_put_back(with_entries({ACCURACY_KEY: value, "some.key": value}), ACCURACY_KEY) == value
    assert entry_to_put_back(with_entries({"some.key": value}), "some.key") == value
    assert entry_to_put_back(quiet(), "some.key") == ""


def test_an_entry_that_was_not_set_is_put_back_as_what_onnx_runtime_takes_then(tmp_path: Path) -> None:
    def attributes(options: ort.SessionOptions) -> dict[str, int]:
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(model, options)
        (node,) = saved_nodes(tmp_path / "optimized.onnx")["MatMulNBits"]
        return {attribute.name: attribute.i for attribute in node.attribute}

    model = linear(Weight(block=PER_CHANNEL)).SerializeToString()
    entries = {key: entry_to_put_back(quiet(), key) for key in (ACCURACY_KEY, BLOCK_SIZE_KEY)}
    assert attributes(with_entries(entries)) == attributes(quiet())
    for key in entries:
        with pytest.raises(Exception, match="parse"):
            ort.InferenceSession(model, with_entries({key: ""}))


@pytest.mark.parametrize(("value", "told"), [("1", True), ("0", False), ("", False), ("true", False), (None, False)])
def test_whether_options_are_in_models(value: str | None, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("ORT_LOAD_CONFIG_FROM_MODEL", raising=False)
    else:
        monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", value)
    assert options_are_in_models() == told
