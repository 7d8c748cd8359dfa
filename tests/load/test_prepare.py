"""The journey of a model, stage by stage: what is planned, what is prepared, and what is given back when it fails."""

import contextlib
import gc
import os
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options
from ort_qdq_plugin.errors import LeaveToStock, NothingToDo, SourceChangedError
from ort_qdq_plugin.load import prepare
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.plan import plan_model
from ort_qdq_plugin.load.prepare import _collecting_no_garbage, prepare_opened
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.parsed import parse
from tests import support
from tests.interrupting import interrupted
from tests.model.test_glance import product
from tests.support import (
    CPU,
    IN_PLACE,
    added_provider,
    linear,
    mapped,
    opened,
    result,
    save,
    stack,
    stock,
    with_initializer,
)


def prepared_from(model: str | bytes, session_options: Any = None, **options: Any) -> PreparedModel:
    with closing(opened(model)) as skeleton:
        return prepare_opened(
            skeleton, LoadRequest(model, session_options, Options(**options)), Journal(options.get("progress")), None
        )


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(save(stack(2, 64), tmp_path, "external"))


def test_a_plan_has_a_place_for_all_that_is_packed(path: str) -> None:
    request, journal = LoadRequest(path, None, Options()), Journal()
    with closing(opened(path)) as skeleton:
        plan = plan_model(parse(skeleton), request, journal)
    assert len(plan.matches.fusions) == 2
    # Of each of the two: 4 bits for a weight, a float and 4 bits for each of the 2 blocks of a column.
    nbytes = 2 * (64 * 64 // 2 + 2 * 64 * 4 + 64)
    assert sum(move.operand.nbytes for move in plan.layout.moves) == nbytes <= sum(plan.layout.sizes)
    assert {"", "com.microsoft"} >= plan.domains
    report = journal.finished("inspect")
    assert (len(report.fused), report.packed_bytes, report.unfused) == (2, nbytes, ())
    assert sorted(report.seconds) == ["match", "plan"]


def test_what_cannot_be_fused_is_told_all_the_same() -> None:
    model, journal = bytes(product().SerializeToString()), Journal()
    with closing(opened(model)) as skeleton, pytest.raises(NothingToDo, match="Nothing in the model can be fused"):
        plan_model(parse(skeleton), LoadRequest(model, None, Options()), journal)
    assert journal.finished("stock").unfused


def test_what_would_be_far_larger_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_GROWTH_BYTES", "_GROWTH"):
        monkeypatch.setattr(f"ort_qdq_plugin.load.plan.{name}", 0)
    with pytest.raises(NothingToDo, match="when packed"):
        prepared_from(linear(Weight()).SerializeToString())


@IN_PLACE
def test_a_prepared_model_is_all_that_a_session_needs(path: str) -> None:
    prepared = prepared_from(path, buffer="file")
    assert (prepared.by_path, prepared.report.route) == (False, "borrowed")
    assert [buffer.mapping for buffer in prepared.packed] == list(prepared.mappings)
    assert set(prepared.mappings) <= set(prepared.buffers.values())
    session = ort.InferenceSession(prepared.model, prepared.session_options, CPU)
    np.testing.assert_array_equal(result(session), result(stock(path)))


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    (tmp_path / "spill").mkdir()
    return tmp_path / "spill"


def test_by_path_files_have_names(path: str, spill: Path) -> None:
    options = added_provider()
    prepared = prepared_from(path, options, spill_dir=spill)
    assert (prepared.by_path, prepared.report.route, prepared.buffers) == (True, "by path", {})
    assert prepared.session_options is options
    names = {str(Path(str(buffer.path)).name) for buffer in prepared.packed}
    assert names <= set(os.listdir(spill))
    for buffer in prepared.packed:
        buffer.discard()
    assert not names & set(os.listdir(spill))


def that_saves() -> ort.SessionOptions:
    options = added_provider()
    options.optimized_model_filepath = "optimized.onnx"
    return options


@pytest.mark.parametrize(("options", "why"), [(with_initializer, "initializers"), (that_saves, "optimized model")])
def test_sessions_that_have_to_see_the_model_as_it_is(path: str, options: Any, why: str) -> None:
    with pytest.raises(LeaveToStock, match=why):
        prepared_from(path, options())


def test_an_interrupt_gives_everything_back(path: str, spill: Path) -> None:
    """Also while somebody keeps the error, except for the mappings that it leads to."""

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    before = support.settled_descriptors()
    with pytest.raises(KeyboardInterrupt) as kept:
        prepared_from(path, buffer="file", spill_dir=spill, threads=1, progress=interrupt)
    assert support.descriptors() == before
    assert mapped(spill)
    assert kept.tb is not None
    assert not os.listdir(spill)


def test_a_model_that_changes_meanwhile_is_not_used(path: str) -> None:
    data = path.replace(".onnx", ".data")
    with pytest.raises(SourceChangedError, match=r"model\.data"):
        prepared_from(path, threads=1, progress=lambda *_: os.utime(data, (0, 0)))


def test_a_model_that_is_none_goes_to_stock() -> None:
    with pytest.raises(LeaveToStock, match="opset_import"):
        prepared_from(onnx.ModelProto(ir_version=10, graph=onnx.GraphProto()).SerializeToString())


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(enabled: bool) -> None:
    if not enabled:
        gc.disable()
    try:
        with suppress(KeyboardInterrupt), _collecting_no_garbage():
            assert not gc.isenabled()
            with _collecting_no_garbage():
                pass
            assert not gc.isenabled()
            raise KeyboardInterrupt
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_an_interrupt_at_any_place_leaves_the_collector_on() -> None:
    def work() -> None:
        with _collecting_no_garbage():
            pass

    number = 1
    while interrupted(number, work, lambda path: path in (contextlib.__file__, prepare.__file__)):
        assert gc.isenabled(), number
        number += 1
    assert number > 5
