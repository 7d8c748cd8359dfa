"""What several test modules need, made once."""

from pathlib import Path

import pytest
from real_support import run_script


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that onnxruntime-genai's model builder writes."""
    made = tmp_path_factory.mktemp("genai")
    run_script("genai_models.py", made)
    return made
