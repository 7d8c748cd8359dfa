"""Waiting for modules that the program imports, sooner or later or never.

It must import neither NumPy nor onnx nor onnxruntime, and does without typing, which takes longer to import than this.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["wait_no_more", "when_imported"]

_awaited: dict[str, Callable[[Any], None]] = {}


def when_imported(name: str, action: Callable[[Any], None]) -> None:
    """Call `action` with a module when it has been imported, or now if it already is. A later call replaces the action."""
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    _awaited[name] = action
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def wait_no_more() -> None:
    """Call no action for modules that have not been imported so far."""
    _awaited.clear()
    if _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)


class _Finder:
    """Finds awaited modules where the finders behind it do, and has them loaded by `_Loader`.

    It stays until they have been imported: a program may only look whether a module exists, or fail and try again.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _awaited:
            return None
        finders = list(sys.meta_path)
        # Another thread may have removed it meanwhile.
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
    """Loads a module as `_inner` does, then calls the action. The module's loader is `_inner` afterwards."""

    _inner: Any = None

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        action = _awaited.pop(module.__name__, None)
        if not _awaited and _Finder in sys.meta_path:
            sys.meta_path.remove(_Finder)
        if action is not None:
            action(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
