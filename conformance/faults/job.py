"""What a process must do, what becomes of it, and whether that is right: judged by what stock ONNX Runtime makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ort_qdq_plugin.options import Buffer

__all__ = ["LOADED", "MB", "Job", "Outcome", "Verdict", "judge"]

MB = 1 << 20
LOADED = "loaded"
"""What a process prints when it has a session."""


@dataclass(frozen=True)
class Job:
    """What a process must do: break something, then load. It is written to its command line as JSON."""

    model: str
    loader: str = "ours"  # "ours", "by path" or "stock"
    spill_dir: str | None = None
    temporary: str = ""  # TMPDIR, if it is a special one
    threads: int = 2
    buffer: Buffer = "file"
    breaks: str = ""  # a name in `breaks.BREAKS`
    value: int = 0
    paths: Sequence[str] = ()  # what the break works on
    wait: bool = False  # for a line on standard input, once everything is imported
    again: bool = False  # load once more, after an interrupt or beside the first session
    uid: int = 0  # run as this user from then on


@dataclass(frozen=True)
class Outcome:
    """What became of a load. `result` is a digest of the output; `error` the exception's class."""

    result: str = ""
    error: str = ""
    route: str = ""
    warnings: Sequence[str] = ()
    again: str = ""
    left: Sequence[str] = ()
    died: str = ""
    messages: str = ""
    stage: str = ""
    seconds: float = 0.0
    missed: bool = False  # the moment at which something was to break never came

    @property
    def short(self) -> str:
        """A few words for the table."""
        if self.died:
            return self.died
        ending = f", then {self.again}" if self.again else ""
        return (f"session ({self.route})" if self.result else self.error) + ending


# Has no counterpart: ONNX Runtime maps what it cannot read.
_UNREADABLE = "SourceUnreadableError"


@dataclass(frozen=True)
class Verdict:
    """One load, judged: what is wrong with it, or nothing, and a few words on it."""

    what: str
    problem: str = ""
    left: int = 0


def judge(ours: Outcome, stock: Outcome, results: set[str], left: set[str], alike: frozenset[str] = frozenset()) -> Verdict:
    """Judge a load by what stock ONNX Runtime made of the same fault, and by the results that are right.

    Errors that are `alike` are as good as each other.
    """
    problem, what = "", ours.short
    if ours.result and ours.result not in results:
        problem = "wrong result"
    elif ours.died and ours.died != stock.died:
        problem = f"{ours.died} {ours.messages[-300:]}; stock: {stock.short}"
    elif ours.died:
        what = f"{ours.died}, as stock is"
    elif ours.error == _UNREADABLE and stock.died:
        what = f"{ours.error}; stock: {stock.died}"
    elif ours.error and ours.error != stock.error and not {ours.error, stock.error} <= alike:
        problem = f"{ours.error}: {ours.messages}; stock: {stock.short}"
    elif ours.error:
        what = f"stock's own {stock.error}"
    elif len(ours.warnings) > 1:
        problem = f"{len(ours.warnings)} warnings: {ours.warnings}"
    elif "Traceback" in ours.messages:
        problem = f"a traceback: {ours.messages[-300:]}"
    if ours.missed:
        problem = problem or "the moment never came"
    if left or ours.left:
        problem = problem or f"left behind: {sorted(left) or ours.left}"
    if ours.result and ours.warnings:
        what += " and a warning"
    return Verdict(what, problem, len(left))
