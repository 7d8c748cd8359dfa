"""What several test modules need, made once."""

import shutil
from pathlib import Path

import pytest
from real_support import run_script


@pytest.fixture(scope="session")
def builders_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that onnxruntime-genai's model builder writes."""
    made = tmp_path_factory.mktemp("genai")
    run_script("genai_models.py", made)
    return made


@pytest.fixture(scope="module")
def built(builders_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of them: caches keep links of a model's data, with which onnx does not load it any more."""
    return shutil.copytree(builders_models, tmp_path_factory.mktemp("built") / "genai")
