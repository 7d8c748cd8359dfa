"""What is in a cache's directory, for people to look at: the model of each entry, and whether it can still be used."""

from __future__ import annotations

import contextlib
import os

from ort_qdq_plugin.cache.entry import MANIFEST, open_entry, read_manifest
from ort_qdq_plugin.cache.manifest import InvalidEntry
from ort_qdq_plugin.cache.prune import StoredEntry, stored_entries
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.errors import error_text
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.system.platform import files
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Item", "inventory"]


class Item(NamedTuple):
    """An entry, and what is in its manifest."""

    stored: StoredEntry
    model: str = ""  # the path of the model that it was made of; "" if the manifest cannot be read
    made: float = 0.0  # when, in seconds since the epoch; 0 if the manifest cannot be read
    shared: bool = False  # whether it has pre-packed weights
    verified: bool = False  # whether the content of its files was compared with the recorded digests
    problem: str = ""  # why it cannot be used any more; "" if it can


def inventory(store: Store, *, verify: bool, progress: Progress) -> list[Item]:
    """All entries, the most recently used first; `verify` compares the content of all files with the recorded digests.

    `progress` is called with (bytes looked at, bytes to look at).
    """
    stored = sorted(stored_entries(store), key=lambda entry: -entry.used)
    total, done, items = sum(entry.nbytes for entry in stored), 0, []
    for entry in stored:
        items.append(_item(store, entry, verify))
        done += entry.nbytes
        progress(done, total)
    return items


def _item(store: Store, stored: StoredEntry, verify: bool) -> Item:
    item, recorded = Item(stored), False
    path = store.path_of(stored.key)
    # A manifest can say anything.
    with (
        contextlib.suppress(OSError, InvalidEntry, ValueError, TypeError, LookupError),
        files.open_to_read(os.path.join(path, MANIFEST)) as file,
    ):
        manifest, made = read_manifest(file), os.fstat(file.fileno()).st_mtime
        recorded = all(source.digest for source in manifest.sources)
        item = item._replace(model=manifest.sources[0].path, made=made, shared=manifest.prepacked_bytes > 0)
    try:
        open_entry(path, stored.key, verify=verify and recorded).close()
    except (InvalidEntry, OSError) as problem:
        return item._replace(problem=error_text(problem))
    return item._replace(verified=verify and recorded)
