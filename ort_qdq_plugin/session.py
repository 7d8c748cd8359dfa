"""The public calls. They import nothing heavy; what only quantized models need is imported when the first of them comes."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import onnxruntime

from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.journey import SessionState, create_native_session, decide, prepare
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.ort.hook import CreateCall
from ort_qdq_plugin.ort.providers import check_providers, provider_names
from ort_qdq_plugin.report import Report, UnfusedWeight
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["create_session", "inspect", "report_of", "warm"]


def create_session(
    path_or_bytes: str | os.PathLike[str] | bytes,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
    provider_options: Sequence[dict[Any, Any]] | None = None,
    *,
    options: Options | None = None,
    **kwargs: Any,
) -> onnxruntime.InferenceSession:
    """Create an InferenceSession for a model, its dequantized products fused and its weights handed over without a copy.

    Whatever ONNX Runtime can load loads: a model that this package cannot help goes to stock ONNX Runtime as it is, with one
    warning at most. Errors of ONNX Runtime's are raised as they are.

    >>> session = create_session("model.onnx")  # doctest: +SKIP
    >>> print(report_of(session))  # doctest: +SKIP

    Args:
        path_or_bytes: The model, as for ``onnxruntime.InferenceSession``. So are the next three, and `kwargs`.
        sess_options: They are read, never changed.
        providers: Execution providers.
        provider_options: Their options.
        options: This package's own.
        **kwargs: What else ``onnxruntime.InferenceSession`` takes.

    Returns:
        An ordinary ``onnxruntime.InferenceSession``.

    Raises:
        QdqPluginError, OSError: With ``Options(strict=True)``: why this package could not help the model.
        SourceUnreadableError: The disk cannot read the weights. Stock ONNX Runtime would be killed.
    """
    session = _Session.__new__(_Session)
    session._ort_qdq_state = SessionState(options or Options())
    onnxruntime.InferenceSession.__init__(session, path_or_bytes, sess_options, providers, provider_options, **kwargs)
    return session


def report_of(session: onnxruntime.InferenceSession) -> Report | None:
    """What was done for a session; None for one that this package did not create."""
    state = getattr(session, "_ort_qdq_state", None)
    if not isinstance(state, SessionState):
        return None
    if state.undecided is not None:
        request, state.undecided = state.undecided, None
        state.report = state.report._replace(unfused=_reasons(request))
    return state.report


def _reasons(request: LoadRequest) -> tuple[UnfusedWeight, ...]:
    """What matching says of each weight that a glance left alone; nothing if the model cannot be opened any more."""
    journal = Journal()
    with suppress(LeaveToStock, QdqPluginError, OSError):
        decide(request, journal)
    return journal.finished("inspect").unfused


def inspect(path_or_bytes: str | os.PathLike[str] | bytes, *, options: Options | None = None) -> Report:
    """What create_session would do with a model under default session options. Packs nothing and creates no session.

    Args:
        path_or_bytes: The model, as a path or as bytes.
        options: This package's own.

    Raises:
        ModelError, OSError: The model cannot be opened.
    """
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    request, journal = LoadRequest(model, None, options or Options()), Journal()
    try:
        decide(request, journal)
    except LeaveToStock as because:
        return journal.finished("inspect", passed_through=str(because))
    return journal.finished("inspect")


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """An InferenceSession whose native session this package creates: when it is made, and again in set_providers."""

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        create_native_session(self, self._ort_qdq_state, CreateCall(providers, provider_options, disabled_optimizers))


# To users it is what it is to stock: an onnxruntime.InferenceSession.
for _attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
    setattr(_Session, _attribute, getattr(onnxruntime.InferenceSession, _attribute))


def warm(path: str | os.PathLike[str], *, options: Options) -> Report:
    """Put a model into the cache, for loads to come, without creating a session.

    Args:
        path: The model.
        options: This package's own; they have a `cache_dir`. Later loads find the model if theirs are the same.

    Returns:
        What was done; `Report.cache` says whether it was there already.

    Raises:
        ValueError: There is no `cache_dir`.
        QdqPluginError, OSError: The model cannot be put there.
    """
    if options.cache_dir is None:
        raise ValueError("the options have no cache_dir")
    request, journal = LoadRequest(os.fspath(path), None, options), Journal()
    with fork_lock:
        from ort_qdq_plugin.load.through_cache import prepare_through_cache, wait_until_on_disk
    try:
        check_providers(provider_names(None, None))
        prepared = prepare_through_cache(request, journal, functools.partial(prepare, request, journal))
    except LeaveToStock as because:
        return journal.finished("stock", passed_through=str(because))
    finally:
        # The process may end now; what it has not written by then does not survive the system's next start.
        wait_until_on_disk()
    for buffer in prepared.packed:
        buffer.discard()
    return prepared.report
