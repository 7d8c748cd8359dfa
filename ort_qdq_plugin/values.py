"""Bases of classes of values, which cost little to make: every process makes the classes of reports and options, and a load
of a quantized model some fifty named tuples.
"""

from __future__ import annotations

from collections import _tuplegetter  # type: ignore[attr-defined]
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeVar, dataclass_transform

__all__ = ["ByFields", "NamedTuple", "Sentence", "replace"]


class Sentence(Enum):
    """Reasons, each with its sentence."""

    def __str__(self) -> str:
        return str(self.value)


def _as_dataclass(cls: type[ByFields]) -> Any:
    """A data class with the same fields."""
    import dataclasses

    fields = cls._types
    defaults = {name: getattr(cls, name) for name in fields if hasattr(cls, name)}
    for name, value in defaults.items():
        if isinstance(value, Mapping):
            defaults[name] = dataclasses.field(default_factory=partial(dict, value))
    return dataclasses.dataclass(frozen=True)(type(cls.__name__, (), {**defaults, "__annotations__": fields}))


def _signature(cls: type[ByFields]) -> Any:
    import inspect

    # None leaves it to `inspect`: a class of a user may have a constructor of its own.
    return inspect.signature(_as_dataclass(cls)) if cls.__init__ is ByFields.__init__ else None


class _OfClass:
    """An attribute of a class and its objects that is made whenever it is asked for."""

    def __init__(self, make: Callable[[type[ByFields]], Any]) -> None:
        self._make = make

    def __get__(self, _instance: object, cls: type[ByFields]) -> Any:
        return self._make(cls)


@dataclass_transform(frozen_default=True, eq_default=False)
class ByFields:
    """A frozen value whose fields are the annotations of its class, and of those that this is made of. Equality, hash and
    text are by fields.

    It is a data class to type checkers, and to `dataclasses` and `inspect` once somebody asks these. Decorating with
    `dataclass` would write methods and compile them for each class, in every process.

    Raises:
        TypeError: A field is not given that has no default, or one is given that there is not.
    """

    if TYPE_CHECKING:
        _types: ClassVar[dict[str, Any]]  # of the fields, by name
    else:  # what type checkers find in `dataclass_transform`
        _types = {}
        __dataclass_fields__ = _OfClass(lambda cls: _as_dataclass(cls).__dataclass_fields__)
        __dataclass_params__ = _OfClass(lambda cls: _as_dataclass(cls).__dataclass_params__)
        __signature__ = _OfClass(_signature)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own = {name: kind for name, kind in cls.__annotations__.items() if "ClassVar" not in str(kind)}
        cls._types = cls._types | own

    def __init__(self, *values: Any, **named: Any) -> None:
        cls = type(self)
        fields = cls._types
        if len(values) > len(fields):
            raise TypeError(f"{cls.__name__}() takes {len(fields)} values at most, and got {len(values)}")
        given = dict(zip(fields, values, strict=False))
        for name, value in named.items():
            if name not in fields:
                raise TypeError(self._unknown(name))
            if name in given:
                raise TypeError(f"{cls.__name__}() got {name} twice, by its place and by its name")
            given[name] = value
        for name in fields:
            try:
                vars(self)[name] = given[name] if name in given else getattr(cls, name)
            except AttributeError:
                raise TypeError(f"{cls.__name__}() misses {name}") from None
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the fields, where a class has something to check."""

    def _unknown(self, name: str) -> str:
        """What is wrong with a name that is none of the fields'."""
        return f"{type(self).__name__}() got an unexpected keyword argument {name!r}"

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

    def __replace__(self, /, **changes: Any) -> Self:  # for `copy.replace`, since Python 3.13
        return type(self)(**{**vars(self), **changes})


_Value = TypeVar("_Value", bound=ByFields)


def replace(value: _Value, **changes: Any) -> _Value:
    """The same value with other fields. Unlike `dataclasses.replace` it calls no constructor: a class of a user may have one
    of its own."""
    replaced = object.__new__(type(value))
    vars(replaced).update(vars(value), **changes)
    replaced.__post_init__()
    return replaced


if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Kind(type):
        """Makes fields of the annotations of a class that is directly a NamedTuple."""

        def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
            if tuple not in bases and NamedTuple in bases:
                fields = tuple(namespace["__annotations__"])
                defaults = {field: namespace.pop(field) for field in fields if field in namespace}
                namespace |= {field: _tuplegetter(at, "") for at, field in enumerate(fields)}
                namespace |= {"_fields": fields, "_field_defaults": defaults, "__match_args__": fields, "__slots__": ()}
            return super().__new__(mcs, name, bases, namespace)

    class NamedTuple(tuple, metaclass=_Kind):
        """What `typing.NamedTuple` is, to classes that have it as their one base.

        That compiles the annotation of each field, and a constructor for each class, which takes 0.1 to 0.5 ms a class.
        """

        __slots__ = ()
        _fields = ()

        def __new__(cls, /, *values: Any, **named: Any) -> Any:
            if named or len(values) != len(cls._fields):
                values = cls._completed(values, named)
            return tuple.__new__(cls, values)

        @classmethod
        def _completed(cls, values: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
            """All values of a new one, from those that are given by place and by name."""
            fields = cls._fields[len(values) :]
            for name in named:
                if name not in fields:
                    raise TypeError(f"{cls.__name__}() got an unexpected argument {name!r}")
            given = {**cls._field_defaults, **named}
            missing = [field for field in fields if field not in given]
            if missing or len(values) > len(cls._fields):
                raise TypeError(f"{cls.__name__}() misses {missing}, or got more than {len(cls._fields)} values")
            return [*values, *(given[field] for field in fields)]

        @classmethod
        def _make(cls, values: Any) -> Any:
            return cls(*values)

        def _replace(self, /, **changes: Any) -> Any:
            return type(self)(**{**self._asdict(), **changes})

        __replace__ = _replace  # for `copy.replace`, since Python 3.13

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

        def __repr__(self) -> str:
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"
