"""Loading through the cache: what has an entry of its own, what an entry gives, and which sessions it is not for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options, Report, StockReason
from ort_qdq_plugin.cache.writer import EntryWriter
from ort_qdq_plugin.errors import LeaveToStock, ModelError, NotFromCache, NothingToDo
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.through_cache import Maker, prepare_through_cache
from ort_qdq_plugin.model.sources import FileSource
from tests.cache.support import PACKED, entries, leftovers
from tests.ort.test_buffers import COUNT, adding, plus
from tests.support import CPU, IN_PLACE, added_provider, quiet, with_initializer

ADDED = 3.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Any file: what is made of it is up to `Making`."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a model")
    os.utime(path, (0, 0))  # what has changed just now is waited for
    return path


def asked(model: Path, cache: Path, session_options: Any = None, **options: Any) -> LoadRequest:
    return LoadRequest(str(model), session_options, Options(cache_dir=cache, **options))


def load(request: LoadRequest, make: Maker) -> PreparedModel:
    return prepare_through_cache(request, Journal(), make)


class Making:
    """Makes of any model file one that adds a packed number, and counts how often."""

    def __init__(self, model: Path, foreign: Sequence[str] = ()) -> None:
        self.count = 0
        self._model = model
        self._foreign = foreign

    def __call__(self, writer: EntryWriter | None) -> PreparedModel:
        assert writer is not None
        self.count += 1
        (packed,) = writer.make_buffers([COUNT * 4])
        packed.array.view(np.float32)[:] = ADDED
        report = Report("borrowed", packed_bytes=COUNT * 4)
        source = FileSource(str(self._model))
        writer.commit(adding(PACKED), [source], {}, report=report, extensions=False, foreign=self._foreign)
        return PreparedModel(adding(PACKED), None, False, {PACKED: packed.mapping}, [packed.mapping], (packed,), report)


# ---- entries


@IN_PLACE
def test_it_is_made_once_and_then_used(model: Path, cache: Path) -> None:
    make = Making(model)
    made, used, again = (load(asked(model, cache), make) for _ in range(3))
    assert make.count == 1
    assert [prepared.report.cache for prepared in (made, used, again)] == ["made", "used", "used"]
    assert used.report.packed_bytes == made.report.packed_bytes
    assert (used.model, used.by_path, used.packed) == (made.model, False, ())
    assert {name: bytes(buffer[:]) for name, buffer in used.buffers.items()} == {PACKED: bytes(made.buffers[PACKED][:])}
    session = ort.InferenceSession(used.model, used.session_options, CPU)
    assert plus(session) == ADDED


@pytest.mark.parametrize("how", ["made", "used"])
def test_what_is_kept_keeps_the_entry(model: Path, cache: Path, how: str) -> None:
    make = Making(model)
    kept = load(asked(model, cache), make)
    if how == "used":
        kept = load(asked(model, cache), make)
    load(asked(model, cache, accuracy_level=0, cache_max_bytes=0), make)
    assert len(entries(cache)) == 2
    assert kept.report.cache == how
    del kept
    load(asked(model, cache, accuracy_level=1, cache_max_bytes=0), make)
    assert len(entries(cache)) == 1


def test_that_there_is_nothing_to_do_is_remembered(model: Path, cache: Path) -> None:
    count = 0

    def nothing(writer: EntryWriter | None) -> PreparedModel:
        nonlocal count
        count += 1
        assert writer is not None
        writer.commit_nothing([FileSource(str(model))], Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
        raise NothingToDo(StockReason.NOT_FUSIBLE, "a detail")

    for _ in range(3):
        with pytest.raises(NothingToDo) as raised:
            load(asked(model, cache), nothing)
        assert (raised.value.reason, raised.value.detail) == (StockReason.NOT_FUSIBLE, "a detail")
    assert count == 1


def test_what_fails_leaves_nothing(model: Path, cache: Path) -> None:
    def fail(writer: EntryWriter | None) -> PreparedModel:
        assert writer is not None
        writer.make_buffers([100])
        raise ModelError("no model")

    with pytest.raises(ModelError):
        load(asked(model, cache), fail)
    assert not entries(cache)
    assert not leftovers(cache)


def test_what_is_not_put_into_the_cache_is_given_all_the_same(model: Path, cache: Path) -> None:
    prepared = PreparedModel(b"", None, True, {}, (), (), Report("by path"))
    for _ in range(2):
        assert load(asked(model, cache), lambda writer: prepared) is prepared
    assert not entries(cache)


# ---- sessions that it is not for


@pytest.mark.parametrize(("session_options", "error"), [(added_provider, NotFromCache), (with_initializer, LeaveToStock)])
def test_sessions_that_need_more(model: Path, cache: Path, session_options: Any, error: type[Exception]) -> None:
    load(asked(model, cache), Making(model))
    with pytest.raises(error):
        load(asked(model, cache, session_options()), Making(model))


def test_a_custom_library_of_the_callers(model: Path, cache: Path) -> None:
    """The model has operators of a domain that only such a library can have, and a copy of the options would lose it."""
    load(asked(model, cache), Making(model, ["some.domain"]))
    with pytest.raises(NotFromCache):
        load(asked(model, cache, quiet()), Making(model))
