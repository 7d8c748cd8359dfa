"""Properties that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["computed_once"]

_T = TypeVar("_T")


class computed_once(Generic[_T]):  # noqa: N801  # used as a decorator, like property
    """A property that is computed when it is first asked for, and then an attribute of the object.

    Until Python 3.12, functools.cached_property takes a lock, one for all objects. A child that was forked while another
    thread held it would wait for ever. Here two threads at most compute the same.
    """

    def __init__(self, compute: Callable[[Any], _T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: object, owner: type) -> _T:
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
