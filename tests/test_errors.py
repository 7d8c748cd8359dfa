"""Errors: which are whose, and what becomes of those of protobuf."""

from pathlib import Path

import pytest
from onnx import ModelProto

from ort_qdq_plugin import ModelError, QdqPluginError, SourceChangedError, StockReason
from ort_qdq_plugin.errors import LeaveToStock, NothingToDo, SourceUnreadableError, error_text, readable
from tests.support import missing


def test_what_a_malformed_message_raises() -> None:
    with pytest.raises(ModelError, match=r"not a readable ONNX model: \w+Error: ") as raised, readable():
        ModelProto().ParseFromString(b"\xff\xff")
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    "error", [ModelError("m"), SourceChangedError("c"), SourceUnreadableError(5, "u"), OSError("o"), KeyboardInterrupt()]
)
def test_what_is_no_error_of_reading_is_raised_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, readable():
        raise error
    assert raised.value is error


def test_what_leaves_the_package_has_one_base() -> None:
    assert all(issubclass(error, QdqPluginError) for error in (ModelError, SourceChangedError, SourceUnreadableError))
    assert issubclass(SourceUnreadableError, OSError)
    assert issubclass(NothingToDo, LeaveToStock)
    assert not issubclass(LeaveToStock, QdqPluginError)
    left = NothingToDo(StockReason.PACKED_SIZE, "90 bytes instead of 4")
    assert (left.reason, left.detail) == (StockReason.PACKED_SIZE, "90 bytes instead of 4")
    assert str(left) == "The model's weights would be far larger when packed than they are stored: 90 bytes instead of 4"


def test_in_words(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    with pytest.raises(OSError, match="missing") as raised:
        path.stat()
    assert error_text(raised.value) == f"{path}: {missing(path)}"
    assert error_text(OSError("short read")) == "short read"
    assert error_text(ModelError("m")) == "m"
