"""An ONNX Runtime that nobody has tried is tried out: what the one that is installed does is known."""

import numpy as np
import pytest

from ort_qdq_plugin.model.releases import LENT_FILES, has
from ort_qdq_plugin.ort import trial
from ort_qdq_plugin.ort.trial import lends_files_when_tried, problem_when_asked


def test_the_installed_one() -> None:
    assert lends_files_when_tried() is has(LENT_FILES)
    assert problem_when_asked() == ""


def test_files_that_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ort_qdq_plugin.ort.buffers.DIRECT_KEY", "no.such.key")
    assert lends_files_when_tried() is False


def test_a_product_with_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_B", np.full_like(trial._B, 0x77))
    assert lends_files_when_tried() is None


def test_answers_that_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "supplies_initializers", lambda _: True)
    assert "cannot be told" in problem_when_asked()
