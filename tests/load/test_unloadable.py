"""Models that ONNX Runtime cannot load: its error, with a note that says what is wrong; and what makes no session raises."""

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

import ort_qdq_plugin
from ort_qdq_plugin import ModelError, Options, QdqPluginError, create_session, export, inspect, warm
from tests.support import CPU, Form, floating, quiet, save, stack, stock
from tests.withstands.outcomes import outcome


def shortened(folder: Path) -> str:
    path = str(save(stack(2, 256), folder, "external"))
    os.truncate(folder / "model.data", 1000)
    return path


def without_data(folder: Path) -> str:
    path = str(save(floating(), folder, "external"))
    (folder / "model.data").unlink()
    return path


def pointer(folder: Path) -> str:
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    return str(folder / "model.onnx")


def directory(folder: Path) -> str:
    return str(folder)


WRONG: dict[Callable[[Path], str], str] = {
    shortened: "model.data has 1000 bytes, 83968 are needed",
    without_data: "model.data does not exist",
    pointer: "a Git LFS pointer",
    directory: "a folder, not an .onnx file",
}


@pytest.fixture(params=WRONG, ids=lambda make: make.__name__)
def wrong(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A path, and what has to be said of it."""
    return request.param(tmp_path), WRONG[request.param]


def error_of(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # ONNX Runtime has many classes of them
        call()
    return raised.value


@pytest.mark.parametrize("strict", [False, True])
def test_the_error_is_that_of_onnx_runtime_with_a_note(wrong: tuple[str, str], strict: bool) -> None:
    path, problem = wrong
    error = error_of(lambda: create_session(path, quiet(), CPU, options=Options(strict=strict)))
    assert outcome(lambda: create_session(path, quiet(), CPU)) == outcome(lambda: stock(path))
    (note,) = error.__notes__
    assert note.startswith("ort-qdq-plugin: ")
    assert problem in note


def test_programs_that_the_variable_reaches_get_it_too(wrong: tuple[str, str]) -> None:
    path, problem = wrong
    ort_qdq_plugin.activate()
    try:
        error = error_of(lambda: ort.InferenceSession(path, quiet(), CPU))
    finally:
        ort_qdq_plugin.deactivate()
    assert problem in error.__notes__[0]


def test_what_makes_no_session_raises(wrong: tuple[str, str], tmp_path: Path) -> None:
    path, problem = wrong
    options = Options(cache_dir=tmp_path / "cache")
    calls: list[Callable[[], object]] = [
        lambda: inspect(path),
        lambda: inspect(path, check=False),
        lambda: warm(path, options=options),
        lambda: warm(path, options=options, portable=True),
    ]
    for call in calls:
        with pytest.raises(ModelError, match=problem):
            call()
    with pytest.raises(QdqPluginError, match=f"{problem}|Nothing in the model is quantized"):
        export(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("form", ["file", "external"])
def test_an_error_about_something_else_has_no_note(form: Form, tmp_path: Path) -> None:
    path = str(save(stack(2, 256), tmp_path, form))
    options = quiet()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "99")
    error = error_of(lambda: create_session(path, options, CPU))
    assert not hasattr(error, "__notes__")


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    path, options = tmp_path / "gone.onnx", Options(cache_dir=tmp_path / "cache")
    calls: list[Callable[[], object]] = [
        lambda: warm(path, options=options),
        lambda: warm(path, options=options, portable=True),
        lambda: inspect(path),
        lambda: export(path, tmp_path / "out.onnx"),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
            call()
    # ONNX Runtime's own error says it.
    assert not hasattr(error_of(lambda: create_session(path)), "__notes__")


def test_bytes_cannot_be_warmed(tmp_path: Path) -> None:
    data = save(stack(2, 256), tmp_path, "bytes")
    with pytest.raises(TypeError, match="path is bytes, must be the path of a model"):
        warm(data, options=Options(cache_dir=tmp_path / "cache"))  # type: ignore[arg-type]
