"""README.md, but for its figures, which are in `test_measuring.py`."""

import inspect as python_inspect
import os
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.model import releases
from tests.claims.registry import claim
from tests.support import CPU, ROOT, quiet, result, save, stack

PAGE = "README.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@claim(PAGE, "(Linux, Python 3.11 or newer)")
@claim(PAGE, "which [stays as it is](docs/platforms.md#installing-beside-an-onnx-runtime): 1.28 or newer.")
@claim("CONTRIBUTING.md", "Linux, Python 3.11 or newer:")
def test_what_is_required() -> None:
    extras = PROJECT["optional-dependencies"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert not [need for need in PROJECT["dependencies"] if "onnxruntime" in need]
    assert (extras["cpu"][0], extras["gpu"]) == ("onnxruntime>=1.28", ["onnxruntime-gpu>=1.28"])
    assert releases.OLDEST == (1, 28)


@claim(PAGE, "`create_session` takes what `onnxruntime.InferenceSession` takes, with the same meaning")
def test_arguments() -> None:
    theirs = [*python_inspect.signature(ort.InferenceSession.__init__).parameters][1:]
    ours = [*python_inspect.signature(create_session).parameters]
    assert ours[: len(theirs) - 1] == theirs[:-1]
    assert ours[len(theirs) - 1 :] == ["options", "kwargs"]
    assert theirs[-1] == "kwargs"


@claim(PAGE, 'session = create_session("model.onnx") # an ordinary onnxruntime.InferenceSession')
def test_what_comes_of_it(small: str) -> None:
    assert isinstance(create_session(small, quiet(), CPU), ort.InferenceSession)


@claim(PAGE, "Replacing a file by renaming is fine.")
@claim("docs/how-it-works.md", "Replacing them by renaming is fine, and so is removing them.")
def test_files_that_are_replaced(tmp_path: Path) -> None:
    model = str(save(stack(2, 256, n_major=True), tmp_path, "external"))
    session = create_session(model, quiet(), CPU, options=Options(strict=True))
    before = result(session)
    other = save(stack(2, 256, "other", n_major=True), tmp_path, "external", "other")
    os.replace(tmp_path / "other.data", tmp_path / "model.data")
    np.testing.assert_array_equal(result(session), before)
    for path in (model, other, tmp_path / "model.data"):
        os.unlink(path)
    np.testing.assert_array_equal(result(session), before)


@claim(PAGE, "By default, activations are rounded to 8 bits, as in ONNX Runtime's own fusion.")
def test_the_default_level(small: str) -> None:
    default, rounded, exact = (
        result(create_session(small, quiet(), CPU, options=Options(accuracy_level=level))) for level in (None, 4, 0)
    )
    np.testing.assert_array_equal(default, rounded)
    assert np.abs(default - exact).max() > 1e-5


@claim(PAGE, "MIT licensed.")
def test_the_license() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


@claim("docs/releasing.md", "Set `__version__` in `ort_qdq_plugin/__init__.py`; the metadata takes it from there.")
def test_where_the_version_is() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["hatch"]["version"]["path"] == "ort_qdq_plugin/__init__.py"
    assert PROJECT["dynamic"] == ["version", "readme"]
