"""Entries of SessionOptions, and the variable that has them read from models."""

import pytest

from ort_qdq_plugin.ort.keys import config_entry, options_are_in_models
from tests.support import with_entries


@pytest.mark.parametrize("value", ["", "0", "a value"])
def test_an_entry_that_is_set(value: str) -> None:
    options = with_entries({"some.key": value})
    assert config_entry(options, "some.key") == value
    assert config_entry(options, "some.other.key") is config_entry(None, "some.key") is None


@pytest.mark.parametrize(("value", "told"), [("1", True), ("0", False), ("", False), ("true", False), (None, False)])
def test_whether_options_are_in_models(value: str | None, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("ORT_LOAD_CONFIG_FROM_MODEL", raising=False)
    else:
        monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", value)
    assert options_are_in_models() == told
