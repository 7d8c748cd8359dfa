"""One load, from a request to a session; and the fallback to stock ONNX Runtime.

    request -> open -> [plan -> pack -> assemble] -> hand over
                 \\________ through the cache _______/

This module imports nothing heavy. What only quantized models need is imported when the first of them comes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import (
    LeaveToStock,
    NotFromCache,
    NothingToDo,
    QdqPluginError,
    SourceChangedError,
    SourceUnreadableError,
    writing_to,
)
from ort_qdq_plugin.load.journal import Journal, shown, tell_stage
from ort_qdq_plugin.load.open import check_fusible, glance_at, is_worth_handing_over, leave_unreadable_to_stock, open_model
from ort_qdq_plugin.load.request import LoadRequest, entries_of
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.ort.hook import CreateCall
from ort_qdq_plugin.ort.options_lock import reading
from ort_qdq_plugin.ort.providers import ON_CPU, check_providers, has_only_added, may_dequantize_once, provider_names
from ort_qdq_plugin.ort.release import check_release, lends_files
from ort_qdq_plugin.ort.spare_copies import copied_once
from ort_qdq_plugin.report import Report, StockReason
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import replace

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.writer import EntryWriter
    from ort_qdq_plugin.load.prepared import PreparedModel
    from ort_qdq_plugin.load.state import SessionState
    from ort_qdq_plugin.model.skeleton import Skeleton

__all__ = ["create_after_first_look", "plan_only", "prepare", "prepare_cached"]


def create_after_first_look(session: Any, state: SessionState, call: CreateCall) -> None:
    """Create the native session of an InferenceSession whose model is more than a first look could settle."""
    model = hook.constructor_arguments(session)[0]
    with log.one_warning(), shown(state.options.progress, model) as progress:
        if not _created_from_prepared(session, state, call, Journal(progress)):
            state.prepared = None
            # If the caller's own code fails, that was the reason for a warning already.
            with suppress(Exception):
                tell_stage(progress, "create session")
            _create_stock(session, state, call)


def _create_stock(session: Any, state: SessionState, call: CreateCall) -> None:
    """Have ONNX Runtime create the native session from the untouched model, and fuse as this package's options say."""
    session_options = hook.constructor_arguments(session)[1]
    # Without DequantizeLinear it has nothing to fuse.
    fuses = state.report.stock_reason is not StockReason.NOT_QUANTIZED
    entries = entries_of(state.options, session_options) if fuses else {}
    if entries:
        with fork_lock:
            from ort_qdq_plugin.load.hand_over import create_stock_with
        create_stock_with(session, entries, call)
    else:
        with reading(session_options):
            hook.create_stock(session, call)


def _created_from_prepared(session: Any, state: SessionState, call: CreateCall, journal: Journal) -> bool:
    """Create the native session from a prepared model. False: stock has to create it, for the reason in the report."""
    state.unmatched = None
    try:
        with copied_once(hook.constructor_arguments(session)[1]):
            state.report = _created(session, state, call, journal)
    except LeaveToStock as stock:
        state.report = journal.finished("stock", stock)
        if isinstance(stock, NothingToDo):
            _match_when_asked(session, state)
    except SourceUnreadableError:
        # Stock ONNX Runtime has no error for this.
        raise
    except Exception as error:
        with fork_lock:
            from ort_qdq_plugin.ort.installed import explained, told_before_of
        missing = explained(error)
        problem = missing or f"{type(error).__name__}: {error}"
        if state.options.strict:
            if isinstance(error, (ImportError, ValueError, RuntimeError)):
                # InferenceSession would take the latter for errors of a provider, and try again with another one.
                raise QdqPluginError(problem) from error
            raise
        state.report = Report("stock", StockReason.ERROR, problem)
        # What is not installed is not installed for any load.
        if missing is None or not told_before_of(missing):
            log.warning("loading with stock ONNX Runtime, without ort-qdq-plugin: %s", problem)
    else:
        if state.report.unchanged is StockReason.NOT_FUSIBLE:
            _match_when_asked(session, state)
        return True
    return False


def _match_when_asked(session: Any, state: SessionState) -> None:
    """Have the report's weights looked for when somebody asks, where a glance has sufficed for the load."""
    if not state.report.unfused:
        state.unmatched = state.request_of(session)


def _created(session: Any, state: SessionState, call: CreateCall, journal: Journal) -> Report:
    """Create the native session from a prepared model; its report.

    Where ONNX Runtime opens files of the cache's entry by path, others may have their paths by then. What was packed is
    borrowed in that case; if nothing was, all is done once more, and at last without the cache.
    """
    prepared = None
    for may_use_cache in (True, True, False):
        prepared = prepared and prepared.spare
        if prepared is None:
            with reading(hook.constructor_arguments(session)[1]):
                prepared = _prepared_for(session, state, call, journal, may_use_cache)
        with fork_lock:
            from ort_qdq_plugin.load.hand_over import hand_over
        try:
            report = hand_over(session, prepared, call, journal.progress)
        except Exception:
            if prepared.is_current():
                raise
            current = False
        else:
            current = prepared.is_current()
        state.prepared = prepared._replace(spare=None) if current and not prepared.is_used_up else None
        if current:
            return report
        log.info("the entry of the cache was replaced while it was opened: loading once more")
    raise SourceChangedError("entries of the cache were replaced while they were opened")


def _prepared_for(
    session: Any, state: SessionState, call: CreateCall, journal: Journal, may_use_cache: bool
) -> PreparedModel:
    model, session_options = hook.constructor_arguments(session)
    copied, state.copied = state.copied, None
    request = LoadRequest(model, session_options, state.options, frozenset(call.disabled_optimizers or ()), copied=copied)
    if has_only_added(call.providers, session_options):
        # Only a session has their names. None is made for a model that has nothing to fuse.
        with _opened(request, journal) as skeleton:
            _check(skeleton, request, journal)
    providers = provider_names(call.providers, session_options)
    check_providers(providers)
    request = request._replace(has_other_providers=not ON_CPU.issuperset(providers))
    if not may_dequantize_once(providers):
        request = request._replace(options=replace(state.options, dequantize_once="never"))
    elif state.prepared is not None:
        return state.prepared
    has_cache = request.options.cache_dir is not None or request.options.prepared is not None
    if not (may_use_cache and has_cache) or isinstance(request.model, bytes):
        return prepare(request, journal)
    try:
        return prepare_cached(request, journal)
    except SourceUnreadableError:
        raise
    except NotFromCache:
        pass
    except OSError as problem:
        log.warning("loading without the cache: %s", problem)
    return prepare(request, journal)


def prepare_cached(request: LoadRequest, journal: Journal, *, must_record: bool = False) -> PreparedModel:
    """The prepared model from the cache, in which it is put if it is not there. Errors as of `prepare_through_cache`.

    Nothing of the cache is touched, or even imported, for a model that a glance shows to have nothing to fuse.
    """
    if request.options.share_weights and not host.opens_by_path():
        log.warning("weights are not shared between processes: ONNX Runtime opens no files by path without /proc")
        request = request._replace(options=replace(request.options, share_weights=False))
    if not _is_cached(request):
        with _opened(request, journal) as skeleton:
            try:
                _check(skeleton, request, journal)
            except LeaveToStock:
                if not _may_be_unchanged(skeleton, request):
                    raise
    with fork_lock:
        from ort_qdq_plugin.load.through_cache import prepare_through_cache
    make = functools.partial(prepare, request, journal)
    with writing_to(request.options.cache_dir or ""):
        return prepare_through_cache(request, journal, make, must_record=must_record)


def _is_cached(request: LoadRequest) -> bool:
    """Whether there may be an entry for this model, be it of use or not. Looking at the model would take longer."""
    if request.options.prepared is not None:
        return True
    folder = os.fspath(request.options.cache_dir or "")
    with suppress(OSError):
        if os.listdir(folder):
            with fork_lock:
                from ort_qdq_plugin.load.key import key_of
            return os.path.isdir(os.path.join(folder, key_of(request)))
    return False


def prepare(request: LoadRequest, journal: Journal, writer: EntryWriter | None = None) -> PreparedModel:
    """Make a prepared model, in an entry of the cache if there is a writer for one.

    Raises:
        LeaveToStock: There is nothing to do for this model.
        QdqPluginError, OSError: It cannot be prepared.
    """
    with _opened(request, journal) as skeleton:
        try:
            try:
                _check(skeleton, request, journal)
                with fork_lock:
                    from ort_qdq_plugin.load.prepare import prepare_opened
                return prepare_opened(skeleton, request, journal, writer)
            except LeaveToStock as stock:
                if not _may_be_unchanged(skeleton, request):
                    raise
                with fork_lock:
                    from ort_qdq_plugin.load.unchanged import prepare_unchanged
                return prepare_unchanged(skeleton, request, journal, stock, writer)
        except NothingToDo as stock:
            if writer is not None:
                writer.commit_nothing(skeleton.file_sources, journal.finished("stock", stock))
            raise


@contextmanager
def _opened(request: LoadRequest, journal: Journal) -> Iterator[Skeleton]:
    """The opened model. It is closed afterwards."""
    with ExitStack() as opened:
        with journal.stage("open"), leave_unreadable_to_stock():
            skeleton = opened.enter_context(closing(open_model(request)))
        yield skeleton


def _check(skeleton: Skeleton, request: LoadRequest, journal: Journal) -> None:
    """Raise LeaveToStock if it can be seen without parsing the model that there is nothing to do for it."""
    with journal.stage("open"):
        check_fusible(skeleton, request)
        glance_at(skeleton, request)
        check_release()


def _may_be_unchanged(skeleton: Skeleton, request: LoadRequest) -> bool:
    # Where ONNX Runtime copies what it is given, nothing is gained.
    return request.may_be_unchanged and is_worth_handing_over(skeleton) and lends_files()


def plan_only(request: LoadRequest, journal: Journal, *, check: bool) -> None:
    """Record in the journal what would be fused and what would not, and why. Nothing is packed.

    With `check`, ONNX Runtime is asked whether it takes the model.

    Raises:
        LeaveToStock: There is nothing to do for this model, or no session would come of it.
        ModelError, OSError: It cannot be opened.
    """
    with journal.stage("open"):
        skeleton = open_model(request)
    with closing(skeleton):
        try:
            _plan_fusions(skeleton, request, journal, check)
        except LeaveToStock as stock:
            if skeleton.may_have_external_data:
                with fork_lock:
                    from ort_qdq_plugin.model.external import check_external_data
                check_external_data(skeleton)
            if not _may_be_unchanged(skeleton, request):
                raise
            with fork_lock:
                from ort_qdq_plugin.load.unchanged import plan_unchanged
            with journal.stage("plan"):
                plan_unchanged(skeleton, request, journal, stock)


def _plan_fusions(skeleton: Skeleton, request: LoadRequest, journal: Journal, check: bool) -> None:
    with journal.stage("open"):
        check_fusible(skeleton, request)
        check_release()
    with fork_lock:
        from ort_qdq_plugin.load.plan import plan_model
        from ort_qdq_plugin.load.verdict import check_taken
        from ort_qdq_plugin.model.external import check_external_data_of
        from ort_qdq_plugin.model.parsed import parse
    with journal.stage("open"):
        parsed = parse(skeleton)
        check_external_data_of(parsed)
    plan, left = None, None
    try:
        plan = plan_model(parsed, request, journal)
    except LeaveToStock as stock:
        left = stock
    if check:
        with journal.stage("check"):
            check_taken(parsed, plan, journal)
    if left is not None:
        raise left
