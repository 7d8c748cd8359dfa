"""Loading through the cache: the first load of a model makes an entry, and every later one maps its files.

This module imports nothing of matching and packing, and what only making an entry needs when the first one is made.
"""

from __future__ import annotations

import functools
import mmap
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

from ort_qdq_plugin import log
from ort_qdq_plugin.cache.entry import MODEL, SHARED_MODEL, Entry
from ort_qdq_plugin.cache.key import Identity, kind_of_processor
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.errors import LeaveToStock, NotFromCache, NothingToDo, QdqPluginError, SourceChangedError
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.key import key_of, portable_place
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.way import Way, way_of
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.ort.buffers import borrow, open_by_path
from ort_qdq_plugin.ort.copies import initialize_ort_once, private_options, supplies_initializers
from ort_qdq_plugin.ort.extensions import register_extensions
from ort_qdq_plugin.report import CacheUse, Report, RouteReason, StockReason
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import NamedTuple, replace

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.writer import EntryWriter

__all__ = [
    "EntryFolder",
    "Maker",
    "NotRecordedError",
    "entry_folder_through_cache",
    "new_entry",
    "plan_from",
    "prepare_through_cache",
    "wait_until_on_disk",
]

# Prepares the model, with its packed buffers in the writer's entry, if there is a writer.
Maker = Callable[["EntryWriter | None"], PreparedModel]

_TRIES = 3  # at a model whose files are replaced meanwhile


class NotRecordedError(QdqPluginError):
    """The model is prepared, but cannot be put into the cache."""


class _ReplacedError(Exception):
    """A file of the model was replaced since the entry was checked."""


def prepare_through_cache(
    request: LoadRequest, journal: Journal, make: Maker, *, must_record: bool = False
) -> PreparedModel:
    """The prepared model: from what was prepared elsewhere, or from its entry in the cache, which is made if there is none.

    If the model is prepared, but cannot be put into the cache, that is an error if it `must_record`, and else a warning.

    Raises:
        LeaveToStock: There is nothing to do for this model, or for this session.
        NotFromCache: This session cannot use an entry.
        NotRecordedError, OSError: The cache cannot be used. Also the errors of `make`.
    """
    for _ in range(_TRIES):
        found = _prepared_elsewhere(request, journal) or (
            _found_or_made(request, _key(request), journal, make, must_record) if request.options.cache_dir else make(None)
        )
        if isinstance(found, PreparedModel):
            return found
        with suppress(_ReplacedError), closing(found), journal.stage("cache"):
            return _used(found, request, journal)
    raise SourceChangedError(f"{request.model!r}: its files were replaced again and again")


class EntryFolder(NamedTuple):
    """An entry that another library opens by path. It is not pruned as long as this object lives."""

    model: str  # the path of its model
    report: Report
    entry: Entry


def entry_folder_through_cache(request: LoadRequest, journal: Journal, make: Maker) -> EntryFolder:
    """The folder of the model's entry, which is self-contained. Arguments and errors as of `prepare_through_cache`."""
    key = _key(request)
    found = _found_or_made(request, key, journal, make, must_record=True)
    made = isinstance(found, PreparedModel)
    if isinstance(found, PreparedModel):
        for buffer in found.packed:
            buffer.seal()
        entry = _store_of(request).find(key, verify=False, counts=False)
        if entry is None:
            raise SourceChangedError(f"{request.model!r}: its new entry of the cache cannot be used")
    else:
        entry = found
    with closing(entry):
        plan_from(entry, journal, "used")
        is_shared = request.options.share_weights and SHARED_MODEL in entry.files
        shared_bytes = entry.manifest.prepacked_bytes if is_shared else 0
        report = journal.finished("shared") if shared_bytes else journal.finished("by path", reason=RouteReason.GENAI)
        report = replace(report, cache="made" if made else "used", shared_bytes=shared_bytes)
        model = os.path.join(entry.path, SHARED_MODEL if is_shared else MODEL)
        return EntryFolder(model, report, entry)


def _key(request: LoadRequest) -> str:
    try:
        return key_of(request)
    except OSError as error:
        raise LeaveToStock(StockReason.UNREADABLE, str(error)) from error


def _prepared_elsewhere(request: LoadRequest, journal: Journal) -> Entry | None:
    """The model's entry in `Options.prepared`, if there is one."""
    options = request.options
    if options.prepared is None or isinstance(request.model, bytes):
        return None
    with fork_lock:
        from ort_qdq_plugin.cache.portable import find_portable
    with suppress(OSError), journal.stage("cache"):
        place = portable_place(request)
        return find_portable(os.fspath(options.prepared), place, request.model, verify=options.verify == "content")
    return None


def _found_or_made(
    request: LoadRequest, key: str, journal: Journal, make: Maker, must_record: bool
) -> Entry | PreparedModel:
    """The entry, or, if there was none, the prepared model that a new one was made of."""
    wanted = {"verify": request.options.verify == "content", "counts": request.counts_as_use}
    with journal.stage("cache"):
        store = _store_of(request)
        entry = store.find(key, **wanted)
    if entry is None:
        with ExitStack() as waiting:
            with journal.stage("cache"):
                waiting.enter_context(store.locked(key))
                # Another process may have made it meanwhile.
                entry = store.find(key, **wanted)
            if entry is None:
                return _made(store, key, request, journal, make, must_record)
    return entry


def _store_of(request: LoadRequest) -> Store:
    return Store(os.fspath(request.options.cache_dir or ""), temporary=request.temporary)


def _made(store: Store, key: str, request: LoadRequest, journal: Journal, make: Maker, must_record: bool) -> PreparedModel:
    """Prepare the model in a new entry."""
    with fork_lock:
        from ort_qdq_plugin.cache.prune import keep_recent, prune
    options = request.options
    prepared, writer = new_entry(store, key, request, make)
    if writer.problem and must_record:
        raise NotRecordedError(writer.problem)
    if writer.problem:
        log.warning("the prepared model is not kept in the cache: %s", writer.problem)
    if writer.holder is None:
        return prepared
    with suppress(OSError):
        keep_recent(store, key)
        if options.cache_max_bytes is not None:
            prune(store, options.cache_max_bytes)
    made = replace(prepared.report, cache="made", copied_bytes=writer.copied_bytes)
    if not options.share_weights and prepared.report.route == "borrowed":
        return prepared._replace(report=made, holder=writer.holder)
    entry = store.find(key, verify=False, counts=False)
    if entry is None:
        # A disk that refuses it has taken it away already.
        return prepared
    # ONNX Runtime opens the entry: for pre-packed weights, or because it copies what it is given in memory. A disk that
    # refuses the entry takes it away again at any moment.
    for buffer in prepared.packed:
        buffer.trim(0, len(buffer.mapping))
    with closing(entry):
        used = _used(entry, request, journal)
        return used._replace(report=replace(used.report, cache="made"), spare=prepared)


def new_entry(store: Store, key: str, request: LoadRequest, make: Maker) -> tuple[PreparedModel, EntryWriter]:
    """Prepare a model in a new entry, whose lock the caller holds; and the entry's writer, which knows what came of it."""
    with fork_lock:
        from ort_qdq_plugin.cache.writer import EntryWriter, YoungSources
    options = request.options
    new_writer = functools.partial(
        EntryWriter,
        store,
        key,
        verify=options.verify == "content",
        share=options.share_weights,
        self_contained=request.self_contained,
        portable=os.fsdecode(request.model) if request.portable else "",
    )
    writer = new_writer()
    try:
        try:
            prepared = make(writer)
        except YoungSources as young:
            time.sleep(young.seconds)
            writer = new_writer(settled=young.identities)
            try:
                prepared = make(writer)
            except YoungSources:
                # They are being written all the time.
                prepared = make(None)
    finally:
        writer.abandon()
    return prepared, writer


def _used(entry: Entry, request: LoadRequest, journal: Journal) -> PreparedModel:
    """The prepared model that an entry holds."""
    manifest = entry.manifest
    if manifest.report.unchanged is not None and not request.may_be_unchanged:
        raise NothingToDo(manifest.report.unchanged, manifest.report.stock_detail)
    plan_from(entry, journal, "prepared" if manifest.is_portable else "used")
    initialize_ort_once()
    if supplies_initializers(request.session_options):
        raise LeaveToStock(StockReason.ADDED_INITIALIZERS)
    way = way_of(request, manifest.foreign)
    if way is Way.WITH_OWN_OPTIONS:
        raise NotFromCache
    session_options = private_options(request.session_options, request.entries)
    if manifest.extensions:
        register_extensions(session_options)
    # There may be nothing that ONNX Runtime pre-packs: then all is shared as it is. What it opens itself, an optimized model
    # refers to where it is, in the cache; what it borrows is written into it.
    is_shared = request.options.share_weights and manifest.prepacked_bytes > 0 and not request.saves_model
    if is_shared and manifest.processor != kind_of_processor():
        log.warning("weights are not shared between processes: they were pre-packed for another kind of processor")
        is_shared = False
    if is_shared:
        # ONNX Runtime only takes pre-packed weights from files that it opens itself.
        open_by_path(session_options, entry.path, request.session_options)
        model = entry.files[SHARED_MODEL].readall()
        report = replace(journal.finished("shared"), shared_bytes=manifest.prepacked_bytes)
        return PreparedModel(model, session_options, False, {}, (), (), report, holder=entry.holder, entry=entry)
    if way is Way.BY_PATH:
        model, paths = entry.files[MODEL].readall(), _paths_of(entry)
        if all(os.path.dirname(path) == entry.path for path in paths.values()):
            open_by_path(session_options, entry.path, request.session_options)
        else:
            with fork_lock:
                from ort_qdq_plugin.memory.external_data import by_paths
            model, root = by_paths(model, paths)
            open_by_path(session_options, root, request.session_options)
        report = journal.finished(way.route, reason=way.reason)
        return PreparedModel(model, session_options, False, {}, (), (), report, holder=entry.holder, entry=entry)
    buffers: dict[str, mmap.mmap | bytes] = {}
    for file in manifest.files:
        if file.name not in (MODEL, SHARED_MODEL):
            buffers[file.name] = host.map_file(entry.files[file.name], file.size)
    for source in manifest.sources:
        if source.location:
            with closing(FileSource(source.path)) as opened:
                if Identity.of(opened.status) != source.identity:
                    raise _ReplacedError
                buffers[source.location] = opened.buffer()
    # The model's own file may be one of the buffers, and weights moved out of it are in another.
    held = manifest.report
    nbytes = None if held.unchanged is None else held.packed_bytes + held.borrowed_bytes
    borrow(session_options, buffers, request.session_options, nbytes)
    return PreparedModel(
        model=entry.files[MODEL].readall(),
        session_options=session_options,
        by_path=False,
        buffers=buffers,
        mappings=[buffer for buffer in buffers.values() if isinstance(buffer, mmap.mmap)],
        packed=(),
        report=journal.finished(way.route, reason=way.reason),
        holder=entry.holder,
    )


def _paths_of(entry: Entry) -> dict[str, str]:
    """The paths of the files that an entry's model refers to, by their locations in it."""
    paths = {file.name: os.path.join(entry.path, file.name) for file in entry.manifest.files}
    for source in entry.manifest.sources:
        if source.location:
            if Identity.of(os.stat(source.path)) != source.identity:
                raise _ReplacedError
            paths[source.location] = source.path
    return paths


def plan_from(entry: Entry, journal: Journal, cache: CacheUse) -> None:
    """Record in the journal what was decided when the entry was made, and what the cache was used for now.

    Raises:
        NothingToDo: The model was left to stock ONNX Runtime.
    """
    report = entry.manifest.report
    journal.planned(replace(report, cache=cache))
    if report.stock_reason is not None:
        raise NothingToDo(report.stock_reason, report.stock_detail)
