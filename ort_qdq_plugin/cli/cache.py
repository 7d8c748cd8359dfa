"""``ort-qdq cache``: what is in a cache's directory, and making room there."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ort_qdq_plugin.cli.console import (
    Column,
    UsageError,
    at_least,
    count,
    progress,
    say,
    say_json,
    say_note,
    say_table,
    size,
    yes_to,
)
from ort_qdq_plugin.system.environment import PREFIX

if TYPE_CHECKING:
    from ort_qdq_plugin.cache.inventory import Item
    from ort_qdq_plugin.cache.store import Store

__all__ = ["EXAMPLE", "HELP", "add_arguments", "checked", "directory", "run"]

HELP = "show, check or empty a cache of prepared models"
EXAMPLE = "ort-qdq cache list --dir /var/cache/models"

_VARIABLE = f"{PREFIX}_CACHE_DIR"
_ACTIONS = ("list", "prune", "clear", "verify")
_COLUMNS = (
    Column("size", right=True),
    Column("made", right=True),
    Column("used", right=True),
    Column("hits", right=True),
    Column("state"),
    Column("model"),
)
_AGES = (("d", 86400), ("h", 3600), ("min", 60))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "action",
        choices=_ACTIONS,
        help="list: what is there. verify: the same, with the content of files that was recorded compared; exit code 1 for "
        "entries that cannot be used any more. prune: remove these. clear: remove all. Entries in use stay",
    )
    parser.add_argument("--dir", help=f"the cache's directory (default: ${_VARIABLE})")
    parser.add_argument(
        "--max-bytes", type=at_least(0), help="prune also what was not used for the longest time, down to this size"
    )
    parser.add_argument("--yes", action="store_true", help="remove without asking")
    parser.add_argument("--json", action="store_true", help="list and verify: print JSON")


def run(given: argparse.Namespace) -> int:
    """Do what is asked with the directory."""
    from ort_qdq_plugin.cache.inventory import inventory
    from ort_qdq_plugin.cache.prune import unfinished_entries
    from ort_qdq_plugin.cache.store import Store

    if given.max_bytes is not None and given.action != "prune":
        raise UsageError("--max-bytes is for prune alone")
    if given.json and given.action in ("prune", "clear"):
        raise UsageError("--json is for list and verify alone")
    folder = directory(given.dir)
    if not os.path.isdir(folder):
        raise UsageError(f"{folder}: no such directory")
    store = Store(folder)
    with progress("reading") as show:
        items = inventory(store, verify=given.action == "verify", progress=show)
    unfinished = unfinished_entries(store)
    bad = {item.stored.key for item in items if item.problem}
    if given.action in ("prune", "clear"):
        condemned = bad | _least_used(items, given.max_bytes)
        shown = [item for item in items if given.action == "clear" or item.stored.key in condemned]
        return _remove(store, shown, unfinished, given)
    if given.json:
        say_json([{**item._asdict(), "stored": item.stored._asdict()} for item in items])
    else:
        _say_items(items, unfinished, folder)
    return int(given.action == "verify" and bool(bad))


def directory(given: str | None) -> str:
    """The directory that is given on the command line or by the environment.

    Raises:
        UsageError: There is none, or it is none.
    """
    folder = os.path.expanduser(given or os.environ.get(_VARIABLE, ""))
    if not folder:
        raise UsageError(f"which directory? Say --dir, or set {_VARIABLE}")
    return checked(folder)


def checked(folder: str) -> str:
    """A directory to write to, which may not exist yet.

    Raises:
        UsageError: There is a file of this name.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"{folder}: a file, must be a directory")
    return folder


def _least_used(items: Sequence[Item], max_bytes: int | None) -> set[str]:
    """The keys of entries without which the others have at most `max_bytes`."""
    left, chosen = sum(item.stored.nbytes for item in items if not item.problem), set()
    for item in reversed(items):
        if max_bytes is not None and left > max_bytes and not item.problem:
            chosen.add(item.stored.key)
            left -= item.stored.nbytes
    return chosen


def _remove(store: Store, items: Sequence[Item], unfinished: Mapping[str, int], given: argparse.Namespace) -> int:
    """Remove these entries, and what there is of unfinished ones (`unfinished_entries`)."""
    from ort_qdq_plugin.cache.prune import remove

    if not items and not unfinished:
        say("There is nothing to remove.")
        return 0
    if not given.yes:
        _say_items(items, unfinished, store.folder)
        if not yes_to(f"Remove {_counted(len(items), len(unfinished))}?"):
            return 0
    sizes = {**{item.stored.key: item.stored.nbytes for item in items}, **unfinished}
    stayed = {key for key in sizes if not remove(store, key)}
    nbytes = sum(taken for key, taken in sizes.items() if key not in stayed)
    removed = _counted(sum(item.stored.key not in stayed for item in items), len(unfinished.keys() - stayed))
    in_use = f"; {count(len(stayed), 'entry')} in use" if stayed else ""
    say(f"Removed {removed}, {size(nbytes)}{in_use}.")
    return 0


def _counted(entries: int, unfinished: int) -> str:
    """How many entries, and how many of them that are not complete."""
    return count(entries, "entry") + f" and {unfinished} unfinished" * bool(unfinished)


def _say_items(items: Sequence[Item], unfinished: Mapping[str, int], folder: str) -> None:
    bad = [index for index, item in enumerate(items) if item.problem]
    rows = [
        [
            size(item.stored.nbytes),
            _age(item.made),
            _age(item.stored.used),
            str(item.stored.hits),
            _state(item),
            item.model or item.stored.key,
        ]
        for item in items
    ]
    if rows:
        say_table(_COLUMNS, rows, marked=bad)
    for index in bad:
        say_note(items[index].problem, head=f"{items[index].stored.key}: ")
    nbytes = sum(item.stored.nbytes for item in items) + sum(unfinished.values())
    say(f"{folder}: {_counted(len(items), len(unfinished))}, {size(nbytes)}")


def _state(item: Item) -> str:
    if item.problem:
        return "unusable"
    return f"{'shared' if item.shared else 'ready'}{', verified' if item.verified else ''}"


def _age(moment: float) -> str:
    """How long ago that was."""
    if not moment:
        return "-"
    seconds = max(0.0, time.time() - moment)
    return next((f"{seconds / length:.0f} {unit}" for unit, length in _AGES if seconds >= length), f"{seconds:.0f} s")
