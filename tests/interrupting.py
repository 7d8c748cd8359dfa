"""Interrupts at each place where the interpreter may let a signal handler raise, and what they must not leave behind."""

import dis
import functools
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tests.support import mapped, settled_descriptors

__all__ = ["Left", "at_place", "interrupted", "settled"]


@functools.cache
def _places(code: CodeType) -> frozenset[int]:
    """Offsets in a function where a handler can have run: at its start, behind calls, and where loops begin anew."""
    places, before = set(), ""
    for instruction in dis.get_instructions(code):
        if before.startswith(("CALL", "RESUME")):
            places.add(instruction.offset)
        if "JUMP_BACKWARD" in instruction.opname:
            places.add(instruction.argval)
        before = instruction.opname
    return frozenset(places)


def at_place(number: int, work: Callable[[], object], within: Callable[[str], bool], action: Callable[[], None]) -> bool:
    """Do something on this thread, and call `action` at one of the places that it comes by; False if there are fewer.

    Args:
        number: Of the place, from 1 on: in the order in which it comes by each of them for the first time.
        work: What is done.
        within: Which modules' places count, by the paths of their files.
        action: What is called there.
    """
    seen: set[tuple[CodeType, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            place = frame.f_code, frame.f_lasti
            if frame.f_lasti in _places(frame.f_code) and place not in seen:
                seen.add(place)
                if len(seen) == number:
                    action()
        elif not within(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes = True
        return trace

    before, unraisable = sys.gettrace(), sys.unraisablehook
    # What is raised in a finalizer or a callback is dropped by the interpreter, with a message.
    sys.unraisablehook = lambda raised: None if raised.exc_type is KeyboardInterrupt else unraisable(raised)
    # CPython 3.12 looks only here whether any frame wants to be traced by instructions.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        sys.unraisablehook = unraisable
    return len(seen) >= number


def interrupted(number: int, work: Callable[[], object], within: Callable[[str], bool]) -> bool:
    """Do something that is interrupted at one of its places; arguments and result as of `at_place`."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    try:
        return at_place(number, work, within, interrupt)
    except KeyboardInterrupt:
        return True


class Left(NamedTuple):
    """What this process has open, and what lies in a folder."""

    descriptors: Counter[str]  # what they lead to
    mappings: int  # of files in the folder
    threads: int
    children: tuple[str, ...]
    files: tuple[str, ...]  # in the folder
    collects: bool  # whether garbage is collected

    @classmethod
    def now(cls, folder: Path) -> "Left":
        tasks = [Path(f"/proc/self/task/{task}/children") for task in os.listdir("/proc/self/task")]
        return cls(
            Counter(filter(None, map(_target, os.listdir("/proc/self/fd")))),
            len(mapped(folder)),
            len(tasks),
            tuple(sorted(" ".join(map(_text, tasks)).split())),
            tuple(sorted(str(path) for path in folder.rglob("*"))),
            gc.isenabled(),
        )

    @classmethod
    def at_rest(cls, folder: Path) -> "Left":
        """When what other tests have left to the garbage collector, and their threads, are gone."""
        settled_descriptors()
        left, since = cls.now(folder), time.monotonic()
        while time.monotonic() < since + 0.05:
            if (again := cls.now(folder)) != left:
                left, since = again, time.monotonic()
        return left

    def is_within(self, other: "Left") -> bool:
        """Whether there is nothing that is not in the other one."""
        counts = self.descriptors <= other.descriptors, self.mappings <= other.mappings, self.threads <= other.threads
        names = {*self.children} <= {*other.children}, {*self.files} <= {*other.files}
        return all(counts) and all(names) and self.collects == other.collects


def _text(path: Path) -> str:
    """What is in a file of the system's; "" if what it is about is gone."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:  # it was that of the folder itself
        return ""


def settled(folder: Path, wanted: Left) -> Left:
    """What was wanted, if there is no more than that at the latest after two seconds: threads and processes take a moment to
    end, and what other tests have left may go meanwhile. Else what there is."""
    end = time.monotonic() + 2
    while not (left := Left.now(folder)).is_within(wanted):
        if time.monotonic() > end:
            return left
        time.sleep(0.002)
    return wanted
