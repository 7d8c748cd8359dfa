"""Options, and what the session's own options add to them."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.ort.keys import config_entry


def test_defaults() -> None:
    options = Options()
    assert (options.accuracy_level, options.block_size, options.buffer, options.strict) == (None, None, "auto", False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.strict = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy_level", -1),
        ("accuracy_level", 5),
        ("block_size", 8),
        ("block_size", 48),
        ("block_size", 512),
        ("block_size", -2),
        ("buffer", "disk"),
        ("buffer", ""),
        ("threads", 0),
        ("threads", -1),
        ("cache_max_bytes", -1),
        ("verify", "sometimes"),
    ],
)
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Options(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("accuracy_level", [0, 1, 2, 3, 4]),
        ("block_size", [-1, 0, 16, 32, 64, 128, 256]),
        ("buffer", ["auto", "file", "memory"]),
        ("threads", [1, 64]),
        ("cache_max_bytes", [0, 1 << 40]),
        ("verify", ["stat", "content"]),
    ],
)
def test_all_that_makes_sense_is_taken(name: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(Options(**{name: value}), name) == value


def test_config_entries() -> None:
    options = ort.SessionOptions()
    assert config_entry(None, "some.key") is None
    assert config_entry(options, "some.key") is None
    options.add_session_config_entry("some.key", "value")
    assert config_entry(options, "some.key") == "value"


def test_threads() -> None:
    options = ort.SessionOptions()
    here = len(os.sched_getaffinity(0))

    def threads(session_options: ort.SessionOptions | None, ours: Options) -> int:
        return LoadRequest("model.onnx", session_options, ours).threads

    assert threads(None, Options()) == here
    assert threads(options, Options()) == here
    options.intra_op_num_threads = 3
    assert threads(options, Options()) == 3
    assert threads(options, Options(threads=5)) == 5
