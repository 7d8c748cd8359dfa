"""The stages between an opened model and a prepared one: parse, plan, pack, assemble.

Each stage takes the values of the previous one and returns new ones. Of the later stages only packing reads the model's
files again: each weight once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import NotComputedError, NothingToDo, SourceUnreadableError
from ort_qdq_plugin.load.assemble import assemble
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.open import leave_unreadable_to_stock
from ort_qdq_plugin.load.pack import packed_buffers
from ort_qdq_plugin.load.plan import plan_model
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.way import Way, check_options
from ort_qdq_plugin.memory.external_data import ExternalData
from ort_qdq_plugin.model.external import check_external_data_of
from ort_qdq_plugin.model.parsed import parse
from ort_qdq_plugin.model.skeleton import Skeleton
from ort_qdq_plugin.ort.buffers import borrow, open_by_path
from ort_qdq_plugin.ort.copies import foreign_domains, initialize_ort_once, private_options
from ort_qdq_plugin.ort.extensions import register_extensions
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN, FOLDER_KEY
from ort_qdq_plugin.report import StockReason

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.writer import EntryWriter

__all__ = ["prepare_opened"]


def prepare_opened(skeleton: Skeleton, request: LoadRequest, journal: Journal, writer: EntryWriter | None) -> PreparedModel:
    """Make a prepared model, with its packed buffers in the writer's entry of the cache, if there is a writer.

    Raises:
        LeaveToStock: There is nothing to do for this model, or the session's options leave no way to do it.
        QdqPluginError, OSError: It cannot be prepared.
    """
    with _collecting_no_garbage():
        with leave_unreadable_to_stock(), journal.stage("open"):
            parsed = parse(skeleton)
            check_external_data_of(parsed)
        plan = plan_model(parsed, request, journal)
    initialize_ort_once()
    check_options(request, way := plan.way)
    if way is Way.WITH_OWN_OPTIONS:
        writer = None
    elif way is Way.BY_PATH and writer is not None:
        # The session opens the entry. What was made of it is for the case that it is gone by then.
        way = Way.COPIED
    if writer is not None:
        writer.check_age(skeleton.file_sources)
    uses_extensions = EXTENSIONS_DOMAIN in plan.domains
    with ExitStack() as undo:
        with journal.stage("pack"), _leaving_undefined_to_stock():
            try:
                packed = packed_buffers(plan.layout, request, way=way, writer=writer, undo=undo, progress=journal.progress)
            except OSError as problem:
                if way is not Way.BY_PATH or isinstance(problem, SourceUnreadableError):
                    raise
                log.info("no file that ONNX Runtime could open (%s): it copies weights from memory instead", problem)
                way = Way.COPIED
                packed = packed_buffers(plan.layout, request, way=way, writer=None, undo=undo, progress=journal.progress)
        with journal.stage("assemble"), _collecting_no_garbage():
            external_data = ExternalData(way.by_path, packed)
            model = assemble(parsed, plan.scope, plan.matches, plan.layout, external_data)
            session_options = request.session_options
            if way is not Way.WITH_OWN_OPTIONS:
                session_options = private_options(session_options, request.entries)
                if uses_extensions:
                    register_extensions(session_options)
                if way is Way.BY_PATH:
                    open_by_path(session_options, external_data.root, request.session_options)
                else:
                    borrow(session_options, external_data.buffers, request.session_options)
        if writer is not None:
            with journal.stage("share" if request.options.share_weights else "cache"):
                writer.commit(
                    model,
                    skeleton.file_sources,
                    external_data.locations,
                    report=journal.finished("borrowed"),
                    extensions=uses_extensions,
                    foreign=sorted(foreign_domains(plan.domains)),
                    progress=journal.progress,
                )
        undo.pop_all()
    return PreparedModel(
        model=model,
        session_options=session_options,
        by_path=way.by_path,
        buffers=external_data.buffers,
        mappings=external_data.mappings,
        packed=tuple(packed),
        lent_entries={**request.entries, FOLDER_KEY: external_data.root} if way is Way.WITH_OWN_OPTIONS else None,
        report=journal.finished(way.route, reason=way.reason),
    )


@contextmanager
def _leaving_undefined_to_stock() -> Iterator[None]:
    """While the block runs, what cannot be computed is left to ONNX Runtime."""
    try:
        yield
    except NotComputedError as error:
        raise NothingToDo(StockReason.NOT_COMPUTED, str(error)) from error


class _Collecting:
    """The cyclic garbage collector is on, at the latest when nothing refers to this object any more."""

    # A method of the interpreter's own: no interrupt can come before it.
    __del__ = gc.enable


@contextmanager
def _collecting_no_garbage() -> Iterator[None]:
    """While the block runs, the cyclic garbage collector does not: it would look at thousands of new objects in vain."""
    if gc.isenabled():
        collecting = _Collecting()
        gc.disable()
        try:
            yield
        finally:
            # An exception refers to this frame.
            del collecting
    else:
        yield
