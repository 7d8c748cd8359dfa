"""Measuring the contenders of one product, with few rows or many."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import onnxruntime as ort

from conformance.choices.forms import OURS, STOCK, Contender, Kind, Product
from conformance.drawing.elements import Array
from conformance.timing import least_seconds
from ort_qdq_plugin import report_of

__all__ = ["MAX_OVER_FASTEST", "MAX_OVER_STOCK", "Cell", "cells"]

MAX_OVER_FASTEST, MAX_OVER_STOCK = 1.15, 1.05
"""Targets: this package's time over that of the fastest contender that counts, and over stock's."""

_MAX_GROWTH = 3

_SECONDS = 0.12
"""For the runs of one contender on one number of rows."""
_RUNS = (3, 60)
_MORE_TRIES = 6
"""Where a figure misses its target, all run again, in new sessions, whose memory lies elsewhere: noise only ever adds."""


class Cell(NamedTuple):
    """What was measured of one kind with so many rows."""

    kind: Kind
    rows: int
    chosen: str  # what this package made of it
    seconds: Mapping[str, float]  # of each contender
    growth: Mapping[str, float]
    same: set[str]  # contenders of the form that this package chose

    @property
    def fastest(self) -> str:
        """Of the contenders that count, leaving out this package."""
        counting = [name for name, growth in self.growth.items() if growth <= _MAX_GROWTH and name != OURS]
        return min(counting, key=self.seconds.__getitem__)

    @property
    def is_right(self) -> bool:
        """Whether no other contender is faster by more than the targets allow."""
        return self.over(self.fastest) <= MAX_OVER_FASTEST and self.over(STOCK) <= MAX_OVER_STOCK

    def over(self, name: str) -> float:
        """This package's time over another contender's."""
        return self.seconds[OURS] / self.seconds[name]


def _seconds(contenders: Mapping[str, Contender], feed: Mapping[str, Array]) -> dict[str, float]:
    sessions = {name: contender.session for name, contender in contenders.items()}
    return least_seconds(sessions, feed, runs=_RUNS, seconds=_SECONDS)


def _chosen(session: ort.InferenceSession) -> str:
    report = report_of(session)
    fused = report.fused if report is not None else ()
    return f"{fused[0].bits} bits, {fused[0].block_size}" if fused else STOCK


def cells(kind: Kind, rows: Sequence[int], problems: list[str]) -> Iterator[Cell]:
    drawn = Product(kind)
    try:
        contenders = drawn.contenders()
    except Exception as error:  # stock refuses some, by unrelated types: nothing to compare with
        print(f"{kind}: {str(error).splitlines()[0][:150]}", flush=True)
        return
    problems += [f"{kind}: {wrong}" for wrong in drawn.wrong(contenders)]
    growth = {name: contender.growth for name, contender in contenders.items()}
    if growth[OURS] > _MAX_GROWTH:
        problems.append(f"{kind}: operands grow to {growth[OURS]:.2f} of their bytes")
    chosen = _chosen(contenders[OURS].session)
    same = {chosen, STOCK} if drawn.form_of_stock() == chosen else {chosen}
    for count in rows:
        feed = drawn.feed(count)
        cell = Cell(kind, count, chosen, _seconds(contenders, feed), growth, same)
        for _ in range(_MORE_TRIES):
            if cell.is_right:
                break
            again = _seconds(drawn.contenders(), feed)
            cell = cell._replace(seconds={name: min(time, again[name]) for name, time in cell.seconds.items()})
        yield cell
