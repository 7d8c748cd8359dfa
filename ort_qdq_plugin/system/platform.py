"""All that differs between operating systems. Another one is another folder of such modules, chosen here by sys.platform.

There is one folder so far. Where it calls what a system lacks, the model goes to stock ONNX Runtime.
"""

from __future__ import annotations

from ort_qdq_plugin.system.posix import descriptors, files, host

__all__ = ["descriptors", "files", "host"]
