"""What a process is told to do, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass

from ort_qdq_plugin.options import Buffer

__all__ = ["LOADED", "MB", "Job", "Outcome"]

MB = 1 << 20
LOADED = "loaded"
"""What a process prints when it has a session."""


@dataclass(frozen=True)
class Job:
    """What a child process is to do: break something, then load."""

    model: str
    loader: str = "ours"  # "ours", "by path" or "stock"
    spill_dir: str | None = None
    threads: int = 2
    buffer: Buffer = "file"
    breaks: str = ""  # a name in `breaks.BREAKS`
    value: int = 0
    paths: tuple[str, ...] = ()  # what the break works on
    wait: bool = False  # for a line on standard input, once everything is imported
    again: bool = False  # load once more, after an interrupt or beside the first session
    uid: int = 0  # run as this user from then on


@dataclass(frozen=True)
class Outcome:
    """What became of a load. `result` is a digest of the output; `error` the exception's class."""

    result: str = ""
    error: str = ""
    route: str = ""
    warnings: tuple[str, ...] = ()
    again: str = ""
    left: tuple[str, ...] = ()
    died: str = ""
    messages: str = ""
    stage: str = ""
    missed: bool = False  # the moment at which something was to break never came

    @property
    def short(self) -> str:
        """A few words for the table."""
        if self.died:
            return self.died
        ending = f", then {self.again}" if self.again else ""
        return (f"session ({self.route})" if self.result else self.error) + ending
