"""Whether weights are shared: what is said of it is true, whatever else takes or has freed memory."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options, Report, create_session, warm
from ort_qdq_plugin.load import hand_over
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.model.messages import ModelProto
from ort_qdq_plugin.model.releases import READ_PREPACKED, has
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.system.platform import host
from tests.cache.support import entries
from tests.support import ROUTE, Array, made_report, quiet, result, save, stack

MB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 12 MiB of pre-packed weights, and its cache."""
    folder = tmp_path_factory.mktemp("shared")
    model = str(save(stack(4, 2048), folder, "external"))
    report = warm(model, options=Options(cache_dir=folder / "cache", share_weights=True))
    assert report.cache == "made"
    return folder


def load(folder: Path) -> ort.InferenceSession:
    options = quiet()
    options.intra_op_num_threads = 2
    return create_session(
        folder / "model.onnx", options, ["CPUExecutionProvider"],
        options=Options(cache_dir=folder / "cache", share_weights=True),
    )  # fmt: skip


def told(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[int, int, Array]:
    """The shared bytes in the report, the number of warnings, and a result."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        session = load(folder)
    report = made_report(session)
    assert (report.route, report.cache) == ("shared", "used")
    return report.shared_bytes, len(caplog.records), result(session)


def nbytes(folder: Path) -> int:
    """Of the blobs, by the model that refers to them: ``prepacked_N`` = ``key|offset;length;checksum|...``."""
    (entry,) = entries(folder / "cache")
    model = ModelProto.FromString((entry / "model-shared.onnx").read_bytes())
    values = [
        item.value for tensor in model.graph.initializer for item in tensor.external_data if item.key[:9] == "prepacked"
    ]
    return sum(int(blob.split(";")[1]) for value in values for blob in value.split("|")[1:])


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime does not find the blobs: their hashes are others, as on another kind of processor."""

    def changed(session: Any, prepared: PreparedModel, *rest: Any) -> Report:
        proto = ModelProto.FromString(prepared.model)
        for tensor in proto.graph.initializer:
            for item in tensor.external_data:
                name, bar, blobs = item.value.partition("|")
                item.value = f"{name}1{bar}{blobs}" if bar else item.value
        return original(session, prepared._replace(model=proto.SerializeToString()), *rest)

    original = hand_over.hand_over
    monkeypatch.setattr(hand_over, "hand_over", changed)


# That pages were read tells more than memory does, where the system says it.
ANOTHER = pytest.param("another thread takes memory", marks=pytest.mark.needs("/proc"))


@pytest.fixture(params=["quiet", ANOTHER, "the heap is full of holes"])
def meanwhile(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What else there is to deceive."""
    taken: list[Array] = []
    create = hook.create_stock

    def taking(*arguments: Any) -> None:
        create(*arguments)
        taken.append(np.ones(40 * MB, np.uint8))

    if request.param == "another thread takes memory":
        monkeypatch.setattr(hook, "create_stock", taking)
    elif request.param == "the heap is full of holes":
        # So small that glibc takes them from the heap; what is between them keeps it from being given back.
        pieces = [np.ones(64 << 10, np.uint8) for _ in range(40 * 16)]
        taken[:] = pieces[::16]
        del pieces
    yield
    taken.clear()


@pytest.mark.usefixtures("meanwhile")
def test_shared_weights_are_told_so(folder: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> None:
    """Each time in one process, also when what earlier sessions had is free."""
    if not has(READ_PREPACKED) and "another thread" in request.node.name:
        pytest.skip("before 1.32 nothing but memory tells, and this thread's memory looks like the weights'")
    assert nbytes(folder) > 12 * MB
    first = told(folder, caplog)
    for _ in range(2):
        shared, warnings, _ = told(folder, caplog)
        assert (shared, warnings) == first[:2] == (nbytes(folder), 0)


@pytest.mark.usefixtures("ignored", "meanwhile")
@pytest.mark.needs("sizes")
def test_weights_that_are_not_shared_are_told_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert told(folder, caplog)[:2] == (0, 1)
    assert "does not use the pre-packed weights" in caplog.text


def test_results_are_the_same(folder: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> None:
    shared = told(folder, caplog)[2]
    request.getfixturevalue("ignored")
    np.testing.assert_array_equal(told(folder, caplog)[2], shared)


@pytest.mark.needs("sizes")
def test_the_heap_tells_where_the_kernel_does_not(
    folder: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "resident_bytes", lambda *_: None)
    assert [told(folder, caplog)[:2] for _ in range(2)] == [(nbytes(folder), 0)] * 2
    request.getfixturevalue("ignored")
    assert [told(folder, caplog)[:2] for _ in range(2)] == [(0, 1)] * 2


@pytest.mark.parametrize(("grown", "is_shared"), [(0, True), (5 * MB, True), (7 * MB, False)])
def test_anonymous_memory_tells_where_nothing_else_does(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, grown: int, is_shared: bool
) -> None:
    """It grows by half of the pre-packed weights, or not."""
    sizes = iter((100 * MB, 100 * MB + grown))
    monkeypatch.setattr(host, "resident_bytes", lambda *_: None)
    monkeypatch.setattr(host, "heap_bytes", lambda: 0)
    monkeypatch.setattr(host, "anonymous_bytes", lambda: next(sizes))
    assert told(folder, caplog)[:2] == ((nbytes(folder), 0) if is_shared else (0, 1))


def test_pages_that_are_gone_again_deceive_nobody(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short, the system takes pages of files back."""
    monkeypatch.setattr(host, "resident_bytes", lambda *_: 0)
    monkeypatch.setattr(host, "anonymous_bytes", lambda: 0)
    assert told(folder, caplog)[:2] == (nbytes(folder), 0)


def test_nothing_is_said_where_nothing_is_pre_packed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At level 0, weights of 8 bits stay as they are."""
    given = Options(cache_dir=tmp_path / "cache", share_weights=True, accuracy_level=0)
    model = save(stack(2, 128, element="uint8"), tmp_path, "external")
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        reports = [made_report(create_session(str(model), quiet(), options=given)) for _ in range(2)]
    assert [(report.route, report.cache, report.shared_bytes) for report in reports] == [
        (ROUTE, "made", 0), (ROUTE, "used", 0),
    ]  # fmt: skip
    assert not caplog.records
