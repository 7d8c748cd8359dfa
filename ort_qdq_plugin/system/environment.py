"""The environment variables, as far as they are known before anything is imported."""

from __future__ import annotations

__all__ = ["LOG", "LOG_FILE", "NO", "NO_TELEMETRY", "PREFIX", "RUN_LOG_FILE", "TUNABLES", "YES", "with_huge_heap"]

PREFIX = "ORT_QDQ_PLUGIN"
"""The variable that switches the package on; the names of all others begin with it."""

LOG, LOG_FILE = f"{PREFIX}_LOG", f"{PREFIX}_LOG_FILE"
"""The level of what is logged, and where it goes."""

RUN_LOG_FILE = f"{PREFIX}_RUN_LOG_FILE"
"""Set by ``ort-qdq run`` alone: a file for what it tells at the end, whatever the user has logged."""

YES = ("1", "true", "yes", "on")
NO = ("", "0", "false", "no", "off")

NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""The variable that ONNX Runtime reads when it is imported (its docs/Privacy.md): "1" has it collect and send nothing."""

TUNABLES = "GLIBC_TUNABLES"
"""The variable that the C library reads when a process starts: name=value, separated by colons."""

_HUGE_HEAP = "glibc.malloc.hugetlb"


def with_huge_heap(tunables: str) -> str:
    """A value of `TUNABLES` that also has the heap use huge pages, unless it says of them already."""
    said = any(entry.partition("=")[0] == _HUGE_HEAP for entry in tunables.split(":"))
    return tunables if said else ":".join(filter(None, [tunables, f"{_HUGE_HEAP}=1"]))
