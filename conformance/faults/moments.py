"""Calls at moments of a load: at each progress of packing, once all is packed, and when a stage begins."""

from __future__ import annotations

import os
from collections.abc import Callable

from conformance.faults.internals import on_every_stage

__all__ = ["announce", "announce_stages", "at_stage", "happened", "once_packed", "progress", "while_packing"]

happened: list[str] = []
"""What was to break at some moment, once it has."""
while_packing: list[Callable[[], None]] = []
"""What to call, once each, when packing next tells of its progress."""
once_packed: list[Callable[[], None]] = []
"""What to call, once each, when all is packed."""


def progress(done: int, total: int) -> None:
    """The progress callback of the loads."""
    while while_packing or (done == total and once_packed):
        happened.append("while packing")
        (while_packing or once_packed).pop()()


def at_stage(name: str, occurrence: int, action: Callable[[], None]) -> None:
    """Call `action` when the load enters a stage of this name for the so-manieth time."""
    entered = 0

    def entering(stage: str) -> None:
        nonlocal entered
        entered += stage == name
        if stage == name and entered == occurrence:
            happened.append(name)
            action()

    on_every_stage(entering)


def announce_stages() -> None:
    """Print each stage's name, so that whoever ends this process knows where it was."""
    on_every_stage(announce)


def announce(what: str) -> None:
    """Print a line in one piece, whatever signal comes meanwhile."""
    os.write(1, f"{what}\n".encode())
