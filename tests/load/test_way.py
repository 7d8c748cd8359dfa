"""By which way ONNX Runtime gets a model where it copies what it is given in memory, as before 1.31: the installed one is
said to be such a release.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, Report, create_session, export
from ort_qdq_plugin.load.state import SessionState
from ort_qdq_plugin.ort.keys import FOLDER_KEY, PARALLEL_KEY, config_entry
from ort_qdq_plugin.report import RouteReason
from tests.support import CPU, added_provider, linear, made_report, quiet, result, save, stack, stock

# More than fits into a model without a file.
LARGE = 2048
COPIES = RouteReason.COPIES


@pytest.fixture(autouse=True)
def _copying(monkeypatch: pytest.MonkeyPatch) -> None:
    if ort.__version__ >= "1.31":
        monkeypatch.setattr(ort, "__version__", "1.29.0")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(stack(1, LARGE), tmp_path_factory.mktemp("large"), "external"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[str]]]:
    """Options and models' external files of the native sessions that are created."""
    seen: list[tuple[Any, list[str]]] = []
    from ort_qdq_plugin.ort import hook

    def create(session: Any, call: Any) -> None:
        model, options = hook.constructor_arguments(session)
        assert isinstance(model, bytes)
        tensors = onnx.ModelProto.FromString(model).graph.initializer
        locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        files = sorted(os.path.join(config_entry(options, FOLDER_KEY) or "", location) for location in locations)
        assert all(map(os.path.exists, files)), files
        seen.append((options, files))
        create_stock(session, call)

    create_stock = hook.create_stock
    monkeypatch.setattr(hook, "create_stock", create)
    return seen


def told(session: ort.InferenceSession) -> tuple[str, RouteReason | None]:
    report: Report = made_report(session)
    assert report.fused
    return report.route, report.route_reason


@pytest.mark.needs("unnamed files")
def test_files_that_onnx_runtime_opens(large: str, spill: Path, opened: list[tuple[Any, list[str]]]) -> None:
    options = quiet()
    session = create_session(large, options, CPU, options=Options(strict=True, spill_dir=spill))
    assert told(session) == ("by path", COPIES)
    assert str(COPIES) in str(made_report(session))
    assert made_report(session).to_dict()["route_reason"] == str(COPIES)
    ((given, files),) = opened
    assert given is not options
    assert files
    assert all(Path(file).parent == spill and not Path(file).exists() for file in files)
    for key in (FOLDER_KEY, PARALLEL_KEY):
        assert config_entry(options, key) is None
        assert config_entry(session.get_session_options(), key) is None
    expected = result(stock(large))
    np.testing.assert_array_equal(result(session), expected)
    session.set_providers(CPU)
    assert told(session) == ("by path", COPIES)
    np.testing.assert_array_equal(result(session), expected)


def test_a_few_bytes_need_no_file(tmp_path: Path, opened: list[tuple[Any, list[str]]]) -> None:
    path = str(save(linear(Weight()), tmp_path, "external"))
    session = create_session(path, quiet(), CPU, options=Options(strict=True, spill_dir=tmp_path / "none"))
    assert told(session) == ("by path", COPIES)
    assert opened[0][1] == []
    np.testing.assert_array_equal(result(session), result(stock(path)))


@pytest.mark.parametrize("n_major", [False, True])
def test_large_weights_of_a_model_in_memory_go_into_a_file(
    n_major: bool, spill: Path, opened: list[tuple[Any, list[str]]]
) -> None:
    model = stack(1, LARGE, n_major=n_major).SerializeToString()
    session = create_session(model, quiet(), CPU, options=Options(strict=True, spill_dir=spill))
    assert told(session) == ("by path", COPIES)
    assert opened[0][1]
    report = made_report(session)
    assert report.borrowed_bytes < LARGE
    assert report.packed_bytes > LARGE * LARGE // 2
    assert np.isfinite(result(session)).all()


@pytest.mark.parametrize("way", ["saves", "memory", "no file"])
def test_where_there_can_be_no_file(
    way: str, large: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_options, options = quiet(), Options(strict=True)
    if way == "saves":
        session_options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    elif way == "memory":
        options = Options(strict=True, buffer="memory")
    else:
        options = Options(strict=True, spill_dir=tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        session = create_session(large, session_options, CPU, options=options)
    assert told(session) == ("copied", COPIES)
    assert len(caplog.records) == (way == "no file")
    np.testing.assert_array_equal(result(session), result(stock(large)))
    state = session._ort_qdq_state
    assert isinstance(state, SessionState)
    assert state.prepared is None  # it would keep what was copied
    session.set_providers(CPU)
    assert told(session) == ("copied", COPIES)
    if way == "saves":
        np.testing.assert_array_equal(result(stock(session_options.optimized_model_filepath)), result(session))


@pytest.mark.parametrize("n_major", [False, True])
def test_through_the_cache(n_major: bool, tmp_path: Path, cache: Path, opened: list[tuple[Any, list[str]]]) -> None:
    model = stack(2, 256, n_major=n_major, zero="none", element="uint4")
    path, options = str(save(model, tmp_path, "external")), Options(strict=True, cache_dir=cache)
    results = []
    for use in ("made", "used"):
        session = create_session(path, quiet(), CPU, options=options)
        assert (*told(session), made_report(session).cache) == ("by path", COPIES, use)
        results.append(result(session))
        session.set_providers(CPU)
        results.append(result(session))
    assert all(any(file.startswith(str(cache)) for file in files) for _, files in opened)
    for one in results[1:]:
        np.testing.assert_array_equal(one, results[0])
    if not n_major:
        np.testing.assert_array_equal(results[0], result(stock(path)))


def test_an_entry_for_a_session_that_saves_the_model(large: str, cache: Path, tmp_path: Path) -> None:
    options = Options(strict=True, cache_dir=cache)
    for name in ("made", "used"):
        saving = quiet()
        saving.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
        session = create_session(large, saving, CPU, options=options)
        assert (*told(session), made_report(session).cache) == ("copied", COPIES, name)
        np.testing.assert_array_equal(result(stock(saving.optimized_model_filepath)), result(session))


def test_options_that_cannot_be_copied_keep_their_reason(large: str) -> None:
    assert told(create_session(large, added_provider(), options=Options(strict=True))) == ("by path", RouteReason.OPTIONS)


def test_what_is_written_to_a_file_needs_no_other(large: str, tmp_path: Path) -> None:
    assert export(large, tmp_path / "out.onnx").route == "export"
    np.testing.assert_array_equal(result(stock(str(tmp_path / "out.onnx"))), result(stock(large)))
