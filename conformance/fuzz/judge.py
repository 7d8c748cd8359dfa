"""Compares what this package makes of a model with what stock ONNX Runtime makes of it."""

from enum import Enum
from typing import Any

import numpy as np

from conformance.fuzz.worker import MAX_BYTES, MAX_SECONDS, Outcome, Worker
from conformance.tolerances import largest_error
from conformance.worker import Crash

__all__ = ["Judge", "Verdict"]

_NOT_LOOKED_FOR = "is stored externally and should not"


class Verdict(Enum):
    """What a mutated model showed; from WRONG on it is a failure of this package."""

    IDENTICAL = "the same numbers as stock, to the last bit"
    CLOSE = "stock's numbers, but for rounding"
    UNOPTIMIZED = "the numbers of unoptimized stock; those of optimized stock are others"
    SAME_ERROR = "the same error as stock"
    SAME_CLASS = "the same class of error as stock, optimized or not, in other words"
    NO_KERNEL = "stock has no kernel for these types"
    LOADED_BOTH = "loaded by both, not run"
    ONLY_OURS = "right, where stock's optimizer fails"
    LIFTED = "loads, where stock does not look for a subgraph's external data"
    BOTH_RUN_INTO = "both fail while they run, each in its own kernel"
    VARIES = "stock's numbers are others each time"
    STOCK_CRASHED = "stock crashed; ours was not asked"
    WRONG = "other numbers than stock"
    OTHER_ERROR = "another error than stock, or one of the two only"
    CRASHED = "a crash or a hang"
    SLOW = "2 s more than stock"
    LARGE = "256 MB more than stock"

    @property
    def failed(self) -> bool:
        return list(Verdict).index(self) >= list(Verdict).index(Verdict.WRONG)


# Of the largest value. Level 4 rounds activations to 8 bits; else right numbers are close ones, whatever the weights.
_ROUNDING_LEVEL = 4
_TOLERANCES = {0: 2e-3, _ROUNDING_LEVEL: 5e-2}
# Of values that overflow none is as large as what is summed up, and at level 4 of few values none may be.
_FEW, _SLACK = 8, 10
_ROUNDING = 1e-6
_SMALLEST_STEPS = 4  # of float16 below its normal numbers


class Judge:
    """Gives verdicts at an accuracy level, or on models that are handed over unchanged, which only exact numbers pass.

    It has a process for ours and one for stock's.
    """

    def __init__(self, level: int = 0, *, unchanged: bool = False) -> None:
        self._ours, self._stock = Worker(), Worker()
        self._level = level
        self._unchanged = unchanged
        self.details = ""
        self.fused = 0

    def close(self) -> None:
        self._ours.close()
        self._stock.close()

    def verdict(self, model: str | bytes) -> Verdict:
        """Load and run the model in all ways. `details` then says more, `fused` how many fusions ours had."""
        self.details, self.fused = "", 0
        crashed = Verdict.STOCK_CRASHED
        try:
            ways = ("unoptimized", "unoptimized") if self._unchanged else ("stock", "unoptimized")
            stock, truth = (self._stock.run(way, model, self._level) for way in ways)
            crashed = Verdict.CRASHED
            ours = self._ours.run("unchanged" if self._unchanged else "ours", model, self._level)
        except Crash as crash:
            self.details = str(crash)
            return crashed
        self.fused = ours.fused
        seconds, nbytes = max(stock.seconds, truth.seconds), max(stock.nbytes, truth.nbytes)
        self.details = (
            f"ours: {_said(ours)}\nstock: {_said(stock)}\nunoptimized: {_said(truth)}\n"
            f"{ours.seconds:.2f} s, stock {seconds:.2f} s; {ours.nbytes >> 20} MB, stock {nbytes >> 20} MB"
        )
        if ours.seconds > seconds + MAX_SECONDS:
            return Verdict.SLOW
        if ours.nbytes > nbytes + MAX_BYTES:
            return Verdict.LARGE
        verdict = _compared(ours, stock, truth, self._level)
        if self._unchanged and verdict in (Verdict.CLOSE, Verdict.UNOPTIMIZED):
            verdict = Verdict.WRONG
        if verdict is Verdict.WRONG and not _close(self._stock.run(ways[0], model, self._level), stock, self._level):
            return Verdict.VARIES
        return verdict


def _compared(ours: Outcome, stock: Outcome, truth: Outcome, level: int) -> Verdict:
    if stock.error is not None:
        # Optimized, it may fail for other reasons.
        has_kernel = truth.error is None or truth.error.kind != "NotImplemented"
        if not has_kernel and (ours.error is None or stock.error.kind == "NotImplemented"):
            return Verdict.NO_KERNEL
        if ours.error is not None:
            if ours.error == stock.error:
                return Verdict.SAME_ERROR
            if ours.stage == stock.stage == "run":
                return Verdict.BOTH_RUN_INTO
            theirs = [(theirs.stage, theirs.error.kind) for theirs in (stock, truth) if theirs.error is not None]
            return Verdict.SAME_CLASS if (ours.stage, ours.error.kind) in theirs else Verdict.OTHER_ERROR
        if _NOT_LOOKED_FOR in stock.error.text:
            return Verdict.LIFTED
        if truth.error is not None:
            return Verdict.OTHER_ERROR
        return Verdict.ONLY_OURS if ours.values is None or _close(ours, truth, level) else Verdict.WRONG
    if ours.error is not None:
        return Verdict.OTHER_ERROR
    if ours.values is None or stock.values is None:
        return Verdict.LOADED_BOTH
    if all(map(_identical, ours.values, stock.values)):
        return Verdict.IDENTICAL
    if _close(ours, stock, level):
        return Verdict.CLOSE
    return Verdict.UNOPTIMIZED if truth.values is not None and _close(ours, truth, level) else Verdict.WRONG


def _identical(a: Any, b: Any) -> bool:
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return type(a) is type(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _close(ours: Outcome, theirs: Outcome, level: int) -> bool:
    if ours.values is None or theirs.values is None:
        return False
    return all(_identical(a, b) or _nearly(a, b, level) for a, b in zip(ours.values, theirs.values, strict=True))


def _nearly(a: Any, b: Any, level: int) -> bool:
    if not isinstance(a, np.ndarray) or a.shape != b.shape or a.dtype != b.dtype or not np.issubdtype(a.dtype, np.floating):
        return False
    # What rounds to infinity is as good as the largest number. Where float16 overflows, wider intermediates need not.
    kind = np.finfo(a.dtype)
    largest, smallest = float(kind.max), _SMALLEST_STEPS * float(kind.smallest_subnormal)
    a, b = np.nan_to_num(a.astype(np.float64), nan=np.nan, posinf=largest, neginf=-largest), b.astype(np.float64)
    tolerance = max(_TOLERANCES[level], largest_error("float16", level) if kind.dtype == np.float16 else 0)
    if np.isinf(b).any() or (level == _ROUNDING_LEVEL and b.size < _FEW):
        tolerance *= _SLACK
    a, b = a[np.isfinite(b)], b[np.isfinite(b)]
    # Level 4 takes the zero points off the sums: what cancels leaves a rounding error.
    limit = max(tolerance * np.abs(b).max(initial=0), smallest, _ROUNDING if level == _ROUNDING_LEVEL else 0)
    return bool((np.abs(a - b) <= limit).all())


def _said(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f"{outcome.stage}: {outcome.error.kind}: {outcome.error.text[:300]}"
    if outcome.values is None:
        return "loaded"
    return ", ".join(f"{np.shape(value)} {np.ravel(value)[:4]}" for value in outcome.values) + f"; {outcome.fused} fused"
