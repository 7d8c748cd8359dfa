"""What a process runs at its start when ``ORT_QDQ_PLUGIN`` is set: nothing but waiting for somebody to import onnxruntime.

``ort_qdq_plugin.pth`` imports this module; it must import neither NumPy nor onnx nor onnxruntime.
"""

from __future__ import annotations

import sys
from typing import Any, cast

__all__ = ["install"]

_AWAITED = "onnxruntime"


def install() -> None:
    """Activate the package as soon as onnxruntime has been imported, or now if it already is."""
    if _AWAITED in sys.modules:
        _activate()
    elif _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds onnxruntime where the other finders do, and has it loaded by `_Loader`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(_Finder)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Any", _Loader(spec.loader))
        return spec


class _Loader:
    """Loads as `inner` does, then activates the package; the module does not keep it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        _activate()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _activate() -> None:
    try:
        from ort_qdq_plugin.activation import activate_from_environment

        activate_from_environment()
    except Exception as error:
        # A program must not fail because of a variable in its environment.
        import warnings

        warnings.warn(f"ort-qdq-plugin cannot be activated: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
