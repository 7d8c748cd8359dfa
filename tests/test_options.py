"""Options, their environment variables, and what the session's own options add to them."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.options import options_from_environment


def test_defaults() -> None:
    options = Options()
    assert (options.accuracy_level, options.block_size, options.buffer, options.strict) == (None, None, "auto", False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.strict = True  # type: ignore[misc]


ALLOWED = {
    "accuracy_level": "a whole number from 0 to 4",
    "block_size": "a power of two from 16 to 256, 0 or -1",
    "buffer": "one of auto, file, memory",
    "spill_dir": "an existing directory",
    "threads": "a whole number of at least 1",
    "strict": "true or false",
    "cache_max_bytes": "a whole number of bytes, at least 0",
    "verify": "one of stat, content",
    "share_weights": "true or false",
    "dequantize_once": "one of auto, never, always",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy_level", -1), ("accuracy_level", 5), ("block_size", 8), ("block_size", 48), ("block_size", 512),
        ("block_size", -2), ("buffer", "disk"), ("buffer", ""), ("buffer", None), ("threads", 0), ("threads", -1),
        ("cache_max_bytes", -1), ("verify", "sometimes"), ("dequantize_once", "twice"), ("dequantize_once", None),
    ],
)  # fmt: skip
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value!r}, must be {ALLOWED[name]}$"):
        Options(**{name: value})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("accuracy_level", "9"), ("accuracy_level", "x"), ("buffer", "disk"), ("spill_dir", "/no/such"), ("threads", "0"),
        ("strict", "?"), ("cache_max_bytes", "-1"), ("cache_max_bytes", "1 MB"), ("verify", "never"), ("share_weights", "2"),
        ("dequantize_once", "1"),
    ],
)  # fmt: skip
def test_nonsense_in_the_environment_is_one_warning(name: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    variable = f"ORT_QDQ_PLUGIN_{name.upper()}"
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        assert options_from_environment({variable: text}) == Options()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"{variable} is {text!r}, must be {ALLOWED[name]}: ignored"]


def test_the_environment_gives_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "ACCURACY_LEVEL": "0", "BUFFER": "memory", "SPILL_DIR": str(tmp_path), "THREADS": " 3 ", "STRICT": "on",
        "CACHE_DIR": "cache", "CACHE_MAX_BYTES": "0", "VERIFY": "content", "SHARE_WEIGHTS": "1",
        "DEQUANTIZE_ONCE": "never",
    }  # fmt: skip
    variables = {f"ORT_QDQ_PLUGIN_{name}": value for name, value in given.items()}
    assert options_from_environment({**variables, "ORT_QDQ_PLUGIN_BLOCK_SIZE": "64"}) == Options(
        0, None, "memory", str(tmp_path), 3, True, "cache", 0, True, "content", "never"
    )
    assert not caplog.records
    del variables["ORT_QDQ_PLUGIN_CACHE_DIR"]
    assert not options_from_environment(variables).share_weights
    assert ["ORT_QDQ_PLUGIN_CACHE_DIR is not" in record.getMessage() for record in caplog.records] == [True]


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


def test_threads() -> None:
    options = ort.SessionOptions()
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def threads(session_options: ort.SessionOptions | None, ours: Options) -> int:
        return LoadRequest("model.onnx", session_options, ours).threads

    assert threads(None, Options()) == here
    assert threads(options, Options()) == here
    options.intra_op_num_threads = 3
    assert threads(options, Options()) == 3
    assert threads(options, Options(threads=5)) == 5
