"""activate and deactivate: programs that create InferenceSessions themselves."""

import inspect as python_inspect
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, activate, create_session, deactivate, report_of
from tests.support import CPU, linear, quiet, result


@pytest.fixture
def activated() -> Iterator[None]:
    activate()
    yield
    deactivate()


MODEL = bytes(linear(Weight()).SerializeToString())


def fused(session: ort.InferenceSession) -> int | None:
    report = report_of(session)
    return None if report is None else len(report.fused)


def test_the_class_stays_what_it_is(activated: None) -> None:
    signature = python_inspect.signature(ort.InferenceSession)
    session = ort.InferenceSession(MODEL, providers=CPU)
    assert fused(session) == 1
    assert type(session) is ort.InferenceSession
    assert pickle.loads(pickle.dumps(ort.InferenceSession)) is ort.InferenceSession
    deactivate()
    assert python_inspect.signature(ort.InferenceSession) == signature


class MadeBefore(ort.InferenceSession):  # type: ignore[misc]
    """A subclass made before the package is activated."""


def test_a_subclass_made_before_counts_too(activated: None) -> None:
    assert fused(MadeBefore(MODEL, providers=CPU)) == 1


def test_deactivated_is_stock_again(activated: None) -> None:
    during = ort.InferenceSession(MODEL, providers=CPU)
    deactivate()
    assert fused(ort.InferenceSession(MODEL, providers=CPU)) is None
    assert fused(during) == 1
    during.set_providers(CPU)


def test_create_session_keeps_its_own_options(activated: None) -> None:
    activate(Options(accuracy_level=4))
    exact = create_session(MODEL, None, CPU, options=Options(accuracy_level=0))
    assert not np.array_equal(result(exact), result(ort.InferenceSession(MODEL, providers=CPU)))


def test_switching_while_others_create_sessions() -> None:
    """Each session is either ours or stock's, and right; afterwards everything is as before."""
    method = ort.InferenceSession._create_inference_session
    wanted = result(create_session(MODEL, quiet(), CPU))
    stop = threading.Event()

    def create() -> set[int | None]:
        seen: set[int | None] = set()
        while not stop.is_set() or not seen:
            session = ort.InferenceSession(MODEL, quiet(), providers=CPU)
            np.testing.assert_array_equal(result(session), wanted)
            seen.add(fused(session))
        return seen

    def switch() -> None:
        for _ in range(200):
            activate()
            deactivate()

    with ThreadPoolExecutor(5) as executor:
        creating = [executor.submit(create) for _ in range(3)]
        for switching in [executor.submit(switch) for _ in range(2)]:
            switching.result()
        stop.set()
        assert set().union(*(future.result() for future in creating)) <= {1, None}
    assert ort.InferenceSession._create_inference_session is method
