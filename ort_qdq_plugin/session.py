"""The public call: create_session, and what happens when it cannot help a model.

This module imports nothing heavy. What only quantized models need is imported when the first of them comes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import onnxruntime

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import LeaveToStock, NothingToDo, QdqPluginError, SourceUnreadableError
from ort_qdq_plugin.opening import glance_at, open_model, what_cannot_be_opened_goes_to_stock
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.hook import Asked
from ort_qdq_plugin.ort.sharing import reading
from ort_qdq_plugin.process import anonymous_bytes, not_forking
from ort_qdq_plugin.providers import provider_names, without_fused_nodes
from ort_qdq_plugin.report import Journal, Report
from ort_qdq_plugin.request import LoadRequest

if TYPE_CHECKING:
    from types import ModuleType

    from ort_qdq_plugin.cache.writer import EntryWriter
    from ort_qdq_plugin.prepared import PreparedModel

__all__ = ["Loading", "create_session", "inspect", "load", "prepared_model", "report_of", "warm"]


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
    session._ort_qdq_loading = Loading(options or Options())
    onnxruntime.InferenceSession.__init__(session, path_or_bytes, sess_options, providers, provider_options, **kwargs)
    return session


def report_of(session: onnxruntime.InferenceSession) -> Report | None:
    """What was done for a session; None for one that this package did not create."""
    loading = getattr(session, "_ort_qdq_loading", None)
    if not isinstance(loading, Loading):
        return None
    if loading.glanced_at is not None:
        request, loading.glanced_at = loading.glanced_at, None
        loading.report = _with_reasons(loading.report, request)
    return loading.report


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
        with journal.stage("open"):
            skeleton = open_model(request)
        with closing(skeleton):
            pipeline = _pipeline()
            with journal.stage("open"):
                opened = pipeline.parse(skeleton)
            pipeline.plan_model(opened, request, journal)
    except LeaveToStock as because:
        return journal.finished("inspect", passed_through=str(because))
    return journal.finished("inspect")


class Loading:
    """What this package knows of one session.

    Attributes:
        options: How it was asked to load it.
        prepared: What it prepared; kept for `set_providers`, which makes the native session anew.
        report: What came of it.
        glanced_at: What was asked for, if a cheap look told that there is nothing to fuse. Then the report does not say yet
            why each weight was left alone.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.prepared: PreparedModel | None = None
        self.report = Report("stock")
        self.glanced_at: LoadRequest | None = None


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """An InferenceSession whose native session is created by `load`: when it is made, and again in set_providers."""

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        load(self, self._ort_qdq_loading, Asked(providers, provider_options, disabled_optimizers))


# To users it is what it is to stock: an onnxruntime.InferenceSession.
for _attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
    setattr(_Session, _attribute, getattr(onnxruntime.InferenceSession, _attribute))


def load(session: Any, loading: Loading, asked: Asked) -> None:
    """Create the native session of an InferenceSession, in place of its own method."""
    model, session_options = hook.asked_of(session)
    if session_options is not None and not isinstance(session_options, onnxruntime.SessionOptions):
        # For ONNX Runtime to complain about.
        hook.create_stock(session, asked)
        return
    if not _load_prepared(session, loading, asked):
        loading.prepared = None
        with reading(session_options):
            hook.create_stock(session, asked)
    log.info("%s: %s", model if isinstance(model, str) else "<bytes>", loading.report.summary())


def _load_prepared(session: Any, loading: Loading, asked: Asked) -> bool:
    """Create the native session from a prepared model; False, with the reason in the report, if stock has to do it."""
    journal = Journal()
    loading.glanced_at = None
    try:
        with reading(hook.asked_of(session)[1]):
            prepared = _prepared_for(session, loading, asked, journal)
        _create_prepared(session, loading, prepared, asked)
    except LeaveToStock as because:
        loading.report = journal.finished("stock", passed_through=str(because))
        if isinstance(because, NothingToDo) and not loading.report.unfused:
            loading.glanced_at = LoadRequest(*hook.asked_of(session), loading.options)
    except SourceUnreadableError:
        # Stock ONNX Runtime has no error for this.
        raise
    except Exception as error:
        if loading.options.strict:
            if isinstance(error, (ValueError, RuntimeError)):
                # The base class would take these for a provider's and try again with another one.
                raise QdqPluginError(f"{type(error).__name__}: {error}") from error
            raise
        loading.report = Report("stock", passed_through=f"{type(error).__name__}: {error}")
        log.warning("loading with stock ONNX Runtime, without this package: %s", loading.report.passed_through)
    else:
        return True
    return False


def _prepared_for(session: Any, loading: Loading, asked: Asked, journal: Journal) -> PreparedModel:
    model, session_options = hook.asked_of(session)
    names = provider_names(asked.providers, session_options)
    request = LoadRequest(model, session_options, loading.options, names, frozenset(asked.disabled_optimizers or ()))
    if loading.prepared is not None and without_fused_nodes(names) is None:
        return loading.prepared
    if request.options.cache_dir is None or isinstance(request.model, bytes):
        return prepared_model(request, journal)
    cached = _cached()
    try:
        prepared: PreparedModel = cached.prepared_through_cache(
            request, journal, functools.partial(prepared_model, request, journal)
        )
        return prepared
    except SourceUnreadableError:
        raise
    except cached.NotFromCache:
        pass
    except OSError as problem:
        log.warning("loading without the cache: %s", problem)
    return prepared_model(request, journal)


def prepared_model(request: LoadRequest, journal: Journal, writer: EntryWriter | None = None) -> PreparedModel:
    """Prepare a model, in an entry of a cache if there is a writer for one.

    Raises:
        LeaveToStock: There is nothing to do for this model.
        QdqPluginError, OSError: It cannot be prepared.
    """
    with what_cannot_be_opened_goes_to_stock(), journal.stage("open"):
        skeleton = open_model(request)
    with closing(skeleton):
        try:
            with journal.stage("open"):
                glance_at(skeleton)
            prepared: PreparedModel = _pipeline().prepare(skeleton, request, journal, writer)
        except NothingToDo as because:
            if writer is not None:
                writer.commit_nothing(skeleton.file_sources, journal.finished("stock", passed_through=str(because)))
            raise
        return prepared


def _create_prepared(session: Any, loading: Loading, prepared: PreparedModel, asked: Asked) -> None:
    from ort_qdq_plugin.ort.copies import private_options
    from ort_qdq_plugin.ort.handover import by_path, keep_until_destroyed, trimming

    journal = Journal(prepared.report.seconds)
    # What get_session_options() will give: the caller may load other models with it. Made before the session is, because a
    # profile that copying begins has the name of one that is begun within the same second.
    as_said = private_options(hook.asked_of(session)[1])
    anonymous_before = anonymous_bytes() if prepared.report.shared_bytes else 0
    handing_over = by_path(prepared.session_options) if prepared.by_path else trimming(prepared.mappings)
    try:
        with (
            hook.standing_in(session, prepared.model, prepared.session_options),
            journal.stage("create session"),
            handing_over,
        ):
            hook.create_stock(session, asked)
    finally:
        for buffer in prepared.packed:
            buffer.unlink()
    if not prepared.by_path:
        keep_until_destroyed(hook.native_session(session), (*prepared.buffers.values(), prepared.holder))
        loading.prepared = prepared
    for buffer in prepared.packed:
        # Only now is it certain that ONNX Runtime has read what was packed.
        buffer.seal()
    hook.say_options(session, as_said)
    if prepared.report.shared_bytes:
        report = _cached().shared_or_not(prepared.report, anonymous_bytes() - anonymous_before)
        prepared = prepared._replace(report=report)
    loading.report = prepared.report._replace(seconds=journal.finished(prepared.report.route).seconds)


def _with_reasons(report: Report, request: LoadRequest) -> Report:
    """The report with what matching says of each weight, as far as that can still be told."""
    journal = Journal()
    try:
        with closing(open_model(request)) as skeleton:
            _pipeline().plan_model(_pipeline().parse(skeleton), request, journal)
    except LeaveToStock:
        return report._replace(unfused=journal.finished("inspect").unfused)
    except (QdqPluginError, OSError):
        pass
    return report


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
    request, journal = LoadRequest(os.fspath(path), None, options, provider_names(None, None)), Journal()
    try:
        prepared = _cached().prepared_through_cache(request, journal, functools.partial(prepared_model, request, journal))
    except LeaveToStock as because:
        return journal.finished("stock", passed_through=str(because))
    finally:
        # The process may end now; what it has not written by then does not survive the system's next start.
        _cached().wait_until_on_disk()
    for buffer in prepared.packed:
        buffer.discard()
    report: Report = prepared.report
    return report


@functools.cache
def _pipeline() -> ModuleType:
    """What only models that there is something to do for need."""
    with not_forking:
        from ort_qdq_plugin import pipeline

        return pipeline


@functools.cache
def _cached() -> ModuleType:
    """What only loads through the cache need."""
    with not_forking:
        from ort_qdq_plugin import cached

        return cached
