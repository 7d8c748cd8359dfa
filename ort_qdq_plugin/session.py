"""The public calls. They import nothing heavy: what only quantized models need is imported when the first one is loaded."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import onnxruntime

from ort_qdq_plugin.arguments import takes_options, warn_of_misspelt
from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError
from ort_qdq_plugin.load.start import create_native_session
from ort_qdq_plugin.load.state import SessionState
from ort_qdq_plugin.ort.hook import KEYWORDS, CreateCall
from ort_qdq_plugin.ort.runs import RUN_METHODS, counted, creating
from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from ort_qdq_plugin.load.journal import Journal
    from ort_qdq_plugin.load.request import LoadRequest
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.report import Report

__all__ = ["create_session", "inspect", "report_of", "warm"]

_PARAMETERS = ("sess_options", "providers", "provider_options")


@takes_options(*KEYWORDS)
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

    Every model that ONNX Runtime can load is loaded: one that this package cannot help is left to stock ONNX Runtime, with
    at most one warning. Errors of ONNX Runtime are raised as they are.

    >>> session = create_session("model.onnx")
    >>> print(report_of(session))

    Args:
        path_or_bytes: The model. This and the next three are arguments of ``onnxruntime.InferenceSession``.
        sess_options: Options of ONNX Runtime. They are read, never changed.
        providers: Execution providers. If there are none, here or in `sess_options`, the model runs on the CPU, as it does
            in ONNX Runtime.
        provider_options: Their options.
        options: Options of this package.
        **kwargs: More arguments of ``onnxruntime.InferenceSession``, which ignores those that it does not know. There is a
            warning if one of these is nearly one that it knows.

    Returns:
        An ordinary ``onnxruntime.InferenceSession``.

    Raises:
        QdqPluginError, OSError: With ``Options(strict=True)``: this package failed. By default it warns, and stock ONNX
            Runtime loads the model.
        SourceUnreadableError: The disk cannot read the weights. Stock ONNX Runtime would be killed.
        TypeError: `options` is something else, or an option is given as an argument of its own. The message says what to
            pass.
    """
    if type(sess_options).__module__ == "ort_qdq_plugin.options":
        raise TypeError("sess_options is an Options, must be an onnxruntime.SessionOptions: pass options=Options(...)")
    warn_of_misspelt(kwargs, (*_PARAMETERS, *KEYWORDS), "onnxruntime.InferenceSession")
    session = _Session.__new__(_Session)
    session._ort_qdq_state = SessionState(options)
    onnxruntime.InferenceSession.__init__(session, path_or_bytes, sess_options, providers, provider_options, **kwargs)
    return session


def report_of(session: onnxruntime.InferenceSession) -> Report | None:
    """What was done for a session. It raises nothing.

    Args:
        session: A session of `create_session`, or any ``onnxruntime.InferenceSession``.

    Returns:
        A `Report`; None for a session that this package did not create.
    """
    state = getattr(session, "_ort_qdq_state", None)
    if not isinstance(state, SessionState):
        return None
    make_request = state.unmatched
    if make_request is not None:
        # Other threads that ask meanwhile look for the same.
        state.report = _with_unfused(state.report, make_request())
        state.unmatched = None
    return state.report


def _with_unfused(report: Report, request: LoadRequest) -> Report:
    """With the weights of a model that a glance left to stock, and why; none if it cannot be opened any more."""
    with fork_lock:
        from ort_qdq_plugin.load.journal import Journal
        from ort_qdq_plugin.load.journey import plan_only
        from ort_qdq_plugin.values import replace
    journal = Journal()
    # Nothing was dequantized once.
    request = request._replace(options=replace(request.options, dequantize_once="never"))
    with suppress(LeaveToStock, QdqPluginError, OSError):
        plan_only(request, journal, check=False)
    found = journal.finished("inspect")
    return replace(report, unfused=found.unfused, stored_bytes=found.stored_bytes)


@takes_options()
def inspect(path_or_bytes: str | os.PathLike[str] | bytes, *, options: Options | None = None, check: bool = True) -> Report:
    """What create_session would do with a model under default session options. Packs nothing and creates no session.

    Operators of custom-op libraries are taken to be there.

    Args:
        path_or_bytes: The model, as a path or as bytes.
        options: Options of this package.
        check: Ask ONNX Runtime whether it takes the model, without its weights; if not, nothing is fused, and
            `Report.stock_reason` is REFUSED. False: a model that nobody trusts never reaches ONNX Runtime.

    Returns:
        A `Report` whose route is "inspect".

    Raises:
        ModelError, OSError: The model cannot be opened, or its external data is not all there.
    """
    with fork_lock:
        from ort_qdq_plugin.load.journal import Journal
        from ort_qdq_plugin.load.journey import plan_only
        from ort_qdq_plugin.load.request import LoadRequest
        from ort_qdq_plugin.options import Options
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)
    request, journal = LoadRequest(model, None, options or Options()), Journal()
    try:
        with _saying_what_to_install():
            plan_only(request, journal, check=check)
    except LeaveToStock as stock:
        return journal.finished("inspect", stock)
    return journal.finished("inspect")


@contextmanager
def _saying_what_to_install() -> Iterator[None]:
    """While the block runs, ImportErrors say what to type where something that quantized models need is not installed."""
    try:
        yield
    except ImportError as error:
        with fork_lock:
            from ort_qdq_plugin.ort.installed import explained
        problem = explained(error)
        if problem is None:
            raise
        raise type(error)(problem, name=error.name) from None


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """An InferenceSession whose native session this package creates, in its constructor and again in set_providers."""

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        with creating(self):
            create_native_session(self, self._ort_qdq_state, CreateCall(providers, provider_options, disabled_optimizers))


for _method in RUN_METHODS:
    setattr(_Session, _method, counted(onnxruntime.InferenceSession, _method))

# To users it looks like the class of a stock session: onnxruntime.InferenceSession.
for _attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
    setattr(_Session, _attribute, getattr(onnxruntime.InferenceSession, _attribute))


@takes_options()
def warm(path: str | os.PathLike[str], *, options: Options, portable: bool = False) -> Report:
    """Put a model into the cache, for later loads, without creating a session.

    Args:
        path: The model.
        options: Options of this package, with an `Options.cache_dir`. Later loads find the model if they have the same
            options.
        portable: Make it for other machines and users, in a directory that is to be copied there with the model and named by
            `Options.prepared`.

    Returns:
        What was done. `Report.cache` is "used" if the model was in the cache before, and "made" if it is there now.

    Raises:
        ValueError: There is no `Options.cache_dir`.
        TypeError: `path` is the model itself, as bytes.
        ModelError, OSError: The model cannot be opened, or its external data is not all there.
        QdqPluginError, OSError: It cannot be put into the cache.
    """
    if options.cache_dir is None:
        raise ValueError("the options have no cache_dir: Options(cache_dir=...) names the directory of the cache")
    if isinstance(path, bytes):
        raise TypeError("path is bytes, must be the path of a model: the cache is for models in files")
    with fork_lock:
        from ort_qdq_plugin.load.journal import Journal, shown
        from ort_qdq_plugin.load.request import LoadRequest
    request = LoadRequest(os.fspath(path), None, options, portable=portable, counts_as_use=False)
    with shown(options.progress, path) as progress:
        return _warmed(request, Journal(progress))


def _warmed(request: LoadRequest, journal: Journal) -> Report:
    with fork_lock:
        from ort_qdq_plugin.load.journal import tell_stage
        from ort_qdq_plugin.load.journey import prepare, prepare_cached
        from ort_qdq_plugin.load.through_cache import wait_until_on_disk
    try:
        with _saying_what_to_install():
            if request.portable:
                with fork_lock:
                    from ort_qdq_plugin.load.portable import make_portable
                return make_portable(request, journal, functools.partial(prepare, request, journal))
            prepared = prepare_cached(request, journal, must_record=True)
    except LeaveToStock as stock:
        with fork_lock:
            from ort_qdq_plugin.load.open import check_readable
            from ort_qdq_plugin.load.unloadable import check_complete
        check_readable(stock)
        check_complete(request)
        return journal.finished("stock", stock)
    finally:
        # An entry that is not on the disk when the process ends would be lost when the system restarts.
        tell_stage(journal.progress, "disk")
        wait_until_on_disk()
    for buffer in prepared.packed:
        buffer.discard()
    return prepared.report
