"""A folder for a model, with data that it may name and data that it may not."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model's place, a data file of 1000 bytes in it, and another one outside."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "w.data").write_bytes(bytes(range(250)) * 4)
    (tmp_path / "outside.data").write_bytes(bytes(1000))
    return inside
