"""What Linux tells about a process."""

from __future__ import annotations

__all__ = ["sizes_of"]


def sizes_of(pid: int | str = "self") -> dict[str, int]:
    """The sizes in /proc/PID/status, such as VmHWM and RssAnon, in bytes. Nothing where there is no /proc."""
    try:
        with open(f"/proc/{pid}/status") as status:
            lines = status.read().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}
