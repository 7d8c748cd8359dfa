"""All faults."""

from conformance.faults.fault import Fault
from conformance.faults.limits import CONTROL_GROUPS, LIMITS
from conformance.faults.signals import SIGNALS
from conformance.faults.sources import SOURCES
from conformance.faults.spilling import DIRECTORIES, DISKS

__all__ = ["FAULTS"]

FAULTS: tuple[Fault, ...] = DISKS + DIRECTORIES + LIMITS + CONTROL_GROUPS + SIGNALS + SOURCES
