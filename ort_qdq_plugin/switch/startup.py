"""What a process runs at its start when ``ORT_QDQ_PLUGIN`` is set: it waits until the program imports onnxruntime.

``ort_qdq_plugin.pth`` imports this module where the variable is set to anything. It must import neither NumPy nor onnx nor
onnxruntime, and does without typing, which takes longer to import than all of this.
"""

from __future__ import annotations

import os

from ort_qdq_plugin.switch.import_hook import when_imported
from ort_qdq_plugin.system.environment import NO, PREFIX, YES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["install"]

# onnxruntime-genai creates its sessions in C++, and does not import onnxruntime.
_MODULES = ("onnxruntime", "onnxruntime_genai")

_activated: list[str] = []


def install() -> None:
    """If the variable is on, activate the package when onnxruntime or onnxruntime-genai is imported, or now if one is.

    If it is neither on nor off, there is a warning then: no program hears of it that does not import them.
    """
    if _switch() not in NO:
        for name in _MODULES:
            when_imported(name, _activate)


def _switch() -> str:
    return os.environ.get(PREFIX, "").strip().lower()


def _activate(module: Any) -> None:
    try:
        if _activated:
            return
        _activated.append(module.__name__)
        if _switch() not in YES:
            from ort_qdq_plugin import log

            log.warning("%s is %r, must be 1 or 0: ort-qdq-plugin is not used", PREFIX, os.environ.get(PREFIX))
            return
        from ort_qdq_plugin.switch import activation

        activation.activate_from_environment()
    except Exception as error:
        # A program must not fail because of a variable in its environment, even if it turns warnings into errors.
        import logging

        logging.getLogger("ort_qdq_plugin").warning("cannot be activated: %s: %s", type(error).__name__, error)
