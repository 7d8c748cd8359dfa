"""The hook: what an InferenceSession was asked for, and what it is asked for meanwhile."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ort_qdq_plugin import activate, deactivate, report_of
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.keys import CREATE_METHOD
from tests.support import CPU, quiet, result, stack, stock


@pytest.fixture
def session() -> ort.InferenceSession:
    return stock(model())


def model(seed: str = "stack") -> bytes:
    return bytes(stack(1, 32, seed=seed).SerializeToString())


class Asking(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """Notes what it is asked for while its native session is made, with another model in its place if there is one."""

    stands_in: tuple[bytes | str, ort.SessionOptions] | None = None

    def _create_inference_session(self, *asked: Any) -> None:
        self.before = hook.constructor_arguments(self)
        if self.stands_in is None:
            hook.create_stock(self, hook.CreateCall(*asked))
            return
        with hook.substituted(self, *self.stands_in):
            self.meanwhile = hook.constructor_arguments(self)
            hook.create_stock(self, hook.CreateCall(*asked))
        self.after = hook.constructor_arguments(self)


def test_a_model_given_as_a_path_or_as_bytes(tmp_path: Path) -> None:
    path, options = tmp_path / "model.onnx", quiet()
    path.write_bytes(model())
    for given in (str(path), path):
        assert Asking(given, options, CPU).before == (str(path), options)
    assert Asking(model(), providers=CPU).before == (model(), None)


@pytest.mark.parametrize("as_path", [False, True])
def test_standing_in(tmp_path: Path, as_path: bool) -> None:
    """The native session is that of the other model; what was asked for stays what it is."""
    given, other, options, other_options = model(), model("another"), quiet(), quiet()
    (tmp_path / "other.onnx").write_bytes(other)
    other_options.logid = "other"

    class StoodInFor(Asking):
        stands_in = (str(tmp_path / "other.onnx") if as_path else other, other_options)

    session = StoodInFor(given, options, CPU)
    assert session.before == session.after == (given, options)
    assert session.meanwhile == StoodInFor.stands_in
    np.testing.assert_array_equal(result(session), result(stock(other)))
    assert not np.array_equal(result(session), result(stock(given)))
    assert hook.native_session(session).session_options.logid == "other"


def test_standing_in_ends_with_an_error(session: ort.InferenceSession) -> None:
    before = hook.constructor_arguments(session)
    with pytest.raises(KeyboardInterrupt), hook.substituted(session, b"no model", None):
        raise KeyboardInterrupt
    assert hook.constructor_arguments(session) == before


def test_the_stock_session_is_stock_where_the_package_is_activated(session: ort.InferenceSession) -> None:
    activate()
    try:
        hook.create_stock(session, hook.CreateCall(CPU, None, None))
    finally:
        deactivate()
    assert report_of(session) is None
    np.testing.assert_array_equal(result(session), result(stock(model())))


def test_what_options_are_said_to_be(session: ort.InferenceSession) -> None:
    options = quiet()
    hook.set_reported_options(session, options)
    assert session.get_session_options() is options


def test_the_native_session_is_what_runs(session: ort.InferenceSession) -> None:
    assert [output.name for output in hook.native_session(session).outputs_meta] == ["y"]
    assert callable(getattr(ort.InferenceSession, CREATE_METHOD))


def test_providers_of_this_build() -> None:
    assert hook.available_providers() == tuple(ort.get_available_providers())
