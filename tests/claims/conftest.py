"""What tests of statements find: the command line in this process, and models that all of them read."""

from pathlib import Path

import pytest

from conformance.drawing.weight import Weight
from tests.cli.support import Here
from tests.support import linear, mixed, save, stack


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, which nobody changes."""
    folder = tmp_path_factory.mktemp("shared")
    save(linear(Weight()), folder, "file", "small")
    save(stack(3, 1024), folder, "external", "large")
    (folder / "mixed.onnx").write_bytes(mixed())
    return folder


@pytest.fixture
def small(shared: Path) -> str:
    """A model of one product: [128, 64], 4 bits, K-major, in one file."""
    return str(shared / "small.onnx")


@pytest.fixture
def large(shared: Path) -> str:
    """A model of three products with 2 MB of packed weights, which go into a file; in external data."""
    return str(shared / "large.onnx")


@pytest.fixture
def mixed_model(shared: Path) -> str:
    """A model of a product that is fused and a vector that is dequantized once."""
    return str(shared / "mixed.onnx")
