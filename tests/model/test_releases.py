"""Which release of ONNX Runtime is installed, and what it has."""

import onnxruntime
import pytest

from ort_qdq_plugin.model.releases import LENT_FILES, NEWEST, OLDEST, has, installed, name_of


@pytest.mark.parametrize(("version", "release", "lends"), [
    ("1.28.0", (1, 28), False), ("1.30.9", (1, 30), False), ("1.31.0", (1, 31), True), ("2.0.0", (2, 0), True),
    ("1.100.0", (1, 100), True), ("1.33.0.dev20261101", (1, 33), True), ("1.31.1+cu12", (1, 31), True),
    ("1.4", (1, 4), False),
])  # fmt: skip
def test_what_a_version_is(version: str, release: tuple[int, int], lends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert installed() == release
    assert has(LENT_FILES) == lends


def test_those_that_were_tried() -> None:
    assert OLDEST < LENT_FILES < NEWEST
    assert (name_of(OLDEST), name_of((1, 9))) == ("1.28", "1.9")
