"""Judging a load by what stock ONNX Runtime makes of the same fault."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.faults.job import Outcome

__all__ = ["Verdict", "judge"]

# Has no counterpart: ONNX Runtime maps what it cannot read.
_UNREADABLE = "SourceUnreadableError"


@dataclass(frozen=True)
class Verdict:
    """One load, judged: what is wrong with it, or nothing, and a few words on it."""

    what: str
    problem: str = ""
    left: int = 0
    where: str = ""


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
    return Verdict(what, problem, len(left), ours.stage)
