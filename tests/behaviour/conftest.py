"""What most of these tests vary: where a model is stored, its layout, the route it takes; and an empty folder."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from tests.support import FORMS, Form, added_provider, quiet


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


@pytest.fixture(params=[False, True], ids=["k_major", "n_major"])
def n_major(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=[quiet, added_provider])
def make(request: pytest.FixtureRequest) -> Callable[[], ort.SessionOptions]:
    """Makes options with which a model is borrowed, or goes by path."""
    found: Callable[[], ort.SessionOptions] = request.param
    return found


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder: for spill files, or another model."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder
