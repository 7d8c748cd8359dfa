"""Arguments of the public calls that are misspelt, of another type or in the wrong place.

Nothing is imported for arguments that are as they should be: every program makes such calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from typing import ParamSpec, TypeVar

    _P = ParamSpec("_P")
    _R = TypeVar("_R")

__all__ = ["takes_options", "warn_of_misspelt"]


def takes_options(*others: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Have a public call that takes `options` refuse anything else, and say where an option belongs that it gets itself.

    What else it has no argument for is its own business. Its arguments that are true or false are checked, too.

    Args:
        others: Names that it knows besides those of its arguments.
    """

    def decorated(call: Callable[_P, _R]) -> Callable[_P, _R]:
        code = call.__code__
        own = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        defaults = call.__kwdefaults__ or {}
        has_default = call.__defaults__ is not None or "options" in defaults

        @functools.wraps(call)
        def checked(*args: _P.args, **keywords: _P.kwargs) -> _R:
            for name, given in (*zip(own, args, strict=False), *keywords.items()):
                if name not in own and name not in others:
                    _refuse_option(call.__name__, name, given)
                elif name == "options" and (given is not None or not has_default):
                    _check_options(given)
                elif isinstance(defaults.get(name), bool) and not isinstance(given, bool):
                    _check_flag(name, given)
            return call(*args, **keywords)

        return checked

    return decorated


def _check_options(options: object) -> None:
    """Raise TypeError for what is not an Options. The message says what to pass."""
    with fork_lock:
        from ort_qdq_plugin.options import Options, shown
    kind = type(options).__name__
    advice = "options=Options(...)"
    if isinstance(options, dict):
        advice = f"options=Options({', '.join(f'{name}={shown(value)}' for name, value in options.items())})"
    elif kind == "SessionOptions":
        advice = "ONNX Runtime's options as sess_options"
    if not isinstance(options, Options):
        raise TypeError(f"options is {shown(options)} ({kind}), must be an ort_qdq_plugin.Options: pass {advice}")


def _check_flag(name: str, given: object) -> None:
    """Raise TypeError for an argument that is neither true nor false."""
    with fork_lock:
        from ort_qdq_plugin.options import check_flag
    check_flag(name, given)


def _refuse_option(call: str, name: str, given: object) -> None:
    """Raise TypeError if a keyword of a call is an option, or is misspelt such that it may be one."""
    with fork_lock:
        from ort_qdq_plugin.options import NAMES, nearest, shown
    if name in NAMES:
        raise TypeError(f"{call}() takes {name} among its options: pass options=Options({name}={shown(given)})")
    meant = nearest(name, ["options", *NAMES])
    if meant is not None:
        advice = "..." if meant == "options" else f"{meant}={shown(given)}"
        raise TypeError(f"{call}() has no argument {name}: did you mean {meant}? Then pass options=Options({advice})")


def warn_of_misspelt(keywords: Iterable[str], known: Collection[str], call: str) -> None:
    """Warn of keywords that a call ignores, but for which it has others that are spelt nearly so."""
    for name in keywords:
        if name not in known:
            with fork_lock:
                from ort_qdq_plugin import log
                from ort_qdq_plugin.options import nearest
            if meant := nearest(name, known):
                log.warning("%s has no argument %s and ignores it; did you mean %s?", call, name, meant)
