"""Bases of the classes of reports and options, which every process makes: they cost little to make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, dataclass_transform

__all__ = ["ByFields", "Sentence", "replace"]


class Sentence(Enum):
    """Reasons, each with its sentence."""

    def __str__(self) -> str:
        return str(self.value)


def _as_dataclass(cls: type) -> Any:
    """A data class with the same fields."""
    import dataclasses

    defaults = {name: vars(cls)[name] for name in cls.__annotations__ if name in vars(cls)}
    for name, value in defaults.items():
        if isinstance(value, Mapping):
            defaults[name] = dataclasses.field(default_factory=partial(dict, value))
    return dataclasses.dataclass(type(cls.__name__, (), {**defaults, "__annotations__": cls.__annotations__}))


def _signature(cls: type) -> Any:
    import inspect

    return inspect.signature(_as_dataclass(cls))


class _OfClass:
    """An attribute of a class and its objects that is made whenever it is asked for."""

    def __init__(self, make: Callable[[type], Any]) -> None:
        self._make = make

    def __get__(self, _instance: object, cls: type) -> Any:
        return self._make(cls)


@dataclass_transform(frozen_default=True, eq_default=False)
class ByFields:
    """A frozen value whose fields are the annotations of its class. Equality, hash and text are by fields.

    It is a data class to type checkers, and to `dataclasses` and `inspect` once somebody asks these. Decorating with
    `dataclass` would write methods and compile them for each class, in every process.

    Raises:
        TypeError: A field is not given that has no default, or one is given that there is not.
    """

    if not TYPE_CHECKING:  # which finds both in `dataclass_transform`
        __dataclass_fields__ = _OfClass(lambda cls: _as_dataclass(cls).__dataclass_fields__)
        __signature__ = _OfClass(_signature)

    def __init__(self, *values: Any, **named: Any) -> None:
        cls = type(self)
        fields = cls.__annotations__
        given = dict(zip(fields, values, strict=False)) | named
        if len(values) > len(fields) or len(given) < len(values) + len(named):
            raise TypeError(f"{cls.__name__}() got {len(values)} values and {', '.join(named) or 'no names'}")
        for name in fields:
            try:
                vars(self)[name] = given.pop(name) if name in given else vars(cls)[name]
            except KeyError:
                raise TypeError(f"{cls.__name__}() misses {name}") from None
        if given:
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {next(iter(given))!r}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the fields, where a class has something to check."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self.__delattr__(name)

    def __delattr__(self, name: str) -> NoReturn:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"{type(self).__name__} is frozen: {name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


_Value = TypeVar("_Value", bound=ByFields)


def replace(value: _Value, **changes: Any) -> _Value:
    """The same value with other fields: `dataclasses.replace`, without importing that."""
    return type(value)(**{**vars(value), **changes})
