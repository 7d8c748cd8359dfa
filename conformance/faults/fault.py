"""What a row of the table is: a fault, and the loads that meet it."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from conformance.faults.job import Verdict
from conformance.faults.scene import Scene, Skipped

__all__ = ["Fault", "Loads", "Row", "run_fault"]

Loads = Callable[[Scene], list[Verdict]]
"""Has the loads of a row done, and judges them."""


@dataclass(frozen=True)
class Fault:
    """A row: what is broken, how, at which stage of a load, and the loads that meet it."""

    name: str
    how: str
    stage: str
    run: Loads
    quick: bool = False


@dataclass(frozen=True)
class Row:
    """A fault and its verdicts, or why there are none."""

    fault: Fault
    verdicts: list[Verdict] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """What is wrong."""
        return [verdict.problem for verdict in self.verdicts if verdict.problem]

    @property
    def outcome(self) -> str:
        """What became of the loads, in words."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        counts = Counter(f"FAIL: {verdict.problem}" if verdict.problem else verdict.what for verdict in self.verdicts)
        return "; ".join(f"{count} x {what}" if len(self.verdicts) > 1 else what for what, count in counts.items())

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        left = "" if self.skipped else str(sum(verdict.left for verdict in self.verdicts) or "nothing")
        return [self.fault.name, self.fault.how, self.fault.stage, self.outcome, left]


def run_fault(fault: Fault, scene: Scene) -> Row:
    """Have one row's loads done and judged."""
    start = time.perf_counter()
    try:
        verdicts = fault.run(scene)
    except Skipped as reason:
        return Row(fault, skipped=str(reason))
    return Row(fault, verdicts, seconds=time.perf_counter() - start)
