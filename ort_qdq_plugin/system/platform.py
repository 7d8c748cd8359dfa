"""All that differs between operating systems. Another one is another folder of such modules, chosen here by sys.platform."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from ort_qdq_plugin.system.windows import descriptors, files, host, usage
else:
    from ort_qdq_plugin.system.posix import descriptors, files, host, usage

__all__ = ["descriptors", "files", "host", "usage"]
