"""What is asked for: whose settings count."""

from __future__ import annotations

from collections.abc import Sequence

import onnxruntime as ort
import pytest

from ort_qdq_plugin import ModelError, Options
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.system.platform import host
from tests.support import with_entry

LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"
BLOCK_KEY = "session.qdq_matmulnbits_block_size"
LEVELS = ort.GraphOptimizationLevel


def asked(
    options: Options | None = None, *, key: str = "some.key", entry: str | None = None, disabled: Sequence[str] = ()
) -> LoadRequest:
    session_options = ort.SessionOptions() if entry is None else with_entry(key, entry)
    return LoadRequest("model.onnx", session_options, options or Options(), disabled_optimizers=frozenset(disabled))


def test_without_session_options() -> None:
    request = LoadRequest("model.onnx", None, Options())
    assert (request.accuracy_level, request.block_size, request.may_fuse) == (4, 0, True)


@pytest.mark.parametrize(
    ("entry", "ours", "level"), [(None, None, 4), ("", None, 4), ("1", None, 1), ("1", 2, 2), (None, 0, 0), ("9", 3, 3)]
)
def test_accuracy_level(entry: str | None, ours: int | None, level: int) -> None:
    assert asked(Options(accuracy_level=ours), key=LEVEL_KEY, entry=entry).accuracy_level == level


@pytest.mark.parametrize(
    ("entry", "ours", "size"), [(None, None, 0), ("", None, 0), ("-1", None, -1), ("64", 16, 16), ("64", None, 64)]
)
def test_block_size(entry: str | None, ours: int | None, size: int) -> None:
    assert asked(Options(block_size=ours), key=BLOCK_KEY, entry=entry).block_size == size


@pytest.mark.parametrize(("key", "texts"), [(LEVEL_KEY, "-1 5 four 1.0"), (BLOCK_KEY, "-2 8 48 512 large")])
def test_entries_that_make_no_sense(key: str, texts: str) -> None:
    for text in texts.split():
        request = asked(key=key, entry=text)
        with pytest.raises(ModelError, match=key):
            _ = request.accuracy_level, request.block_size


@pytest.mark.parametrize(
    ("level", "may_fuse"),
    [
        (LEVELS.ORT_DISABLE_ALL, False),
        (LEVELS.ORT_ENABLE_BASIC, False),
        (LEVELS.ORT_ENABLE_EXTENDED, True),
        (LEVELS.ORT_ENABLE_ALL, True),
    ],
)
def test_levels_of_optimization(level: ort.GraphOptimizationLevel, may_fuse: bool) -> None:
    request = asked()
    assert request.session_options is not None
    request.session_options.graph_optimization_level = level
    assert request.may_fuse == may_fuse


@pytest.mark.parametrize(("text", "may_fuse"), [("0", True), ("1", False)])
def test_qdq_that_is_switched_off(text: str, may_fuse: bool) -> None:
    assert asked(key="session.disable_quant_qdq", entry=text).may_fuse == may_fuse


def test_optimizers_that_are_not_to_run() -> None:
    assert asked(disabled=["ConstantFolding"]).may_fuse
    assert not asked(disabled=["ConstantFolding", "QDQSelectorActionTransformer"]).may_fuse


def test_one_thread_where_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many it is otherwise is tested with the options."""
    monkeypatch.setattr(host, "memory_is_limited", lambda: True)
    assert asked().threads == 1
    assert asked(Options(threads=5)).threads == 5
