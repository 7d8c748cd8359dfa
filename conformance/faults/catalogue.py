"""All faults."""

from __future__ import annotations

from conformance.faults import control_groups, directories, disks, limits, signals, sources
from conformance.faults.fault import Fault

__all__ = ["FAULTS"]

FAULTS: tuple[Fault, ...] = tuple(
    fault for module in (disks, directories, limits, control_groups, signals, sources) for fault in module.CHAPTER.faults
)
