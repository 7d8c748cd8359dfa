"""What a process runs at its start when ``ORT_QDQ_PLUGIN`` is set: nothing but waiting for somebody to import onnxruntime.

``ort_qdq_plugin.pth`` imports this module where the variable is set to anything. It must import neither NumPy nor onnx nor
onnxruntime, and does without typing, which takes longer to import than all of this.
"""

from __future__ import annotations

import os
import sys

from ort_qdq_plugin.environment import PREFIX, YES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["install"]

_AWAITED = "onnxruntime"


def install() -> None:
    """Where the variable says so, activate the package as soon as onnxruntime has been imported, or now if it already is."""
    if os.environ.get(PREFIX, "").strip().lower() not in YES:
        return
    if _AWAITED in sys.modules:
        _activate()
    elif _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds onnxruntime where the finders behind it do, and has it loaded by `_Loader`.

    It stays until onnxruntime has been imported: many only ask whether it could be, or fail and try again.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name != _AWAITED:
            return None
        finders = list(sys.meta_path)
        # Another thread may have taken it out meanwhile.
        behind = finders[finders.index(_Finder) + 1 :] if _Finder in finders else []
        for finder in behind:
            find_spec = getattr(finder, "find_spec", None)
            spec = None if find_spec is None else find_spec(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """Loads as `_inner` does, then activates the package; the module does not keep it."""

    _inner: Any = None

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        if _Finder in sys.meta_path:
            sys.meta_path.remove(_Finder)
        _activate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _activate() -> None:
    try:
        from ort_qdq_plugin.activation import activate_from_environment

        activate_from_environment()
    except Exception as error:
        # A program must not fail because of a variable in its environment, even where it takes warnings for errors.
        import logging

        logging.getLogger("ort_qdq_plugin").warning("cannot be activated: %s: %s", type(error).__name__, error)
