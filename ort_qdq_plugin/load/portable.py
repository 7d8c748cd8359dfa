"""Making a portable entry: one that is copied to other machines (cache/portable.py)."""

from __future__ import annotations

import os

from ort_qdq_plugin.cache.portable import find_portable, portable_key
from ort_qdq_plugin.cache.store import LOCK, Store, make_directory
from ort_qdq_plugin.errors import writing_to
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.key import portable_place
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.through_cache import Maker, NotRecordedError, new_entry, plan_from
from ort_qdq_plugin.load.unloadable import check_complete
from ort_qdq_plugin.model.files import data_files
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.values import replace

__all__ = ["make_portable"]


def make_portable(request: LoadRequest, journal: Journal, make: Maker) -> Report:
    """Put a model into the directory of portable entries that is `Options.cache_dir`, unless it is there.

    Raises:
        LeaveToStock: There is nothing to do for this model.
        QdqPluginError, OSError: It cannot be made.
    """
    directory, model = os.path.abspath(os.fspath(request.options.cache_dir or "")), os.fsdecode(request.model)
    check_complete(request)
    # For other users too.
    make_directory(directory, 0o755)
    with writing_to(directory):
        return _made_in(directory, model, request, journal, make)


def _made_in(directory: str, model: str, request: LoadRequest, journal: Journal, make: Maker) -> Report:
    store, place = Store(directory), portable_place(request)
    entry = find_portable(directory, place, model, verify=False)
    if entry is not None:
        entry.close()
        plan_from(entry, journal, "used")
        return journal.finished("borrowed")
    key = portable_key(place, [model, *data_files(model)])
    with store.locked(key):
        try:
            prepared, writer = new_entry(store, key, request, make)
        finally:
            # It is of no use to those who cannot write here.
            os.unlink(store.path_of(key) + LOCK)
    for buffer in prepared.packed:
        buffer.discard()
    if writer.problem:
        raise NotRecordedError(writer.problem)
    return replace(prepared.report, cache="made" if writer.holder else "", copied_bytes=writer.copied_bytes)
