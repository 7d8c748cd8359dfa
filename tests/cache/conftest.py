"""A store, and what entries are made of."""

import os
from pathlib import Path

import pytest

from ort_qdq_plugin.cache.store import Store
from tests.cache.support import make_entry, saved, written_back
from tests.support import stack


@pytest.fixture
def store(cache: Path) -> Store:
    return Store(str(cache))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Any file: what is packed is up to the tests."""
    path = tmp_path / "source.onnx"
    path.write_bytes(bytes(range(256)) * 400)
    os.utime(path, (0, 0))  # the system's times have steps: what is changed at once may keep the present one
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its weights in a file of their own."""
    return saved(stack(4, 512), tmp_path / "model")


@pytest.fixture
def entry(store: Store, source: Path) -> Path:
    """The folder of a complete entry, of which every file is on disk."""
    folder = make_entry(store, source=source)
    written_back(Path(store.folder))
    return folder
