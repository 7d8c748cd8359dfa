"""Frozen dataclasses whose import costs little.

``dataclasses.dataclass`` writes and compiles eight methods for each class: 0.7 ms of every process for a class of twelve
fields. Here only ``__init__`` is compiled for a class, and the other methods are written once, for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass", "fields_of"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool, slots: bool) -> Any:
        """``dataclasses.dataclass(frozen=True, slots=True)``, which is what type checkers take it for."""

        def made(cls: type) -> type:
            cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
            for name in ("__setattr__", "__delattr__", "__eq__", "__hash__", "__repr__", "__reduce__"):
                setattr(cls, name, getattr(_Methods, name))
            cls.__init__ = _constructor(cls)
            return cls

        return made


def fields_of(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; ``dataclasses.asdict`` without going into them."""
    return {name: getattr(instance, name) for name in instance.__dataclass_fields__}


def _constructor(cls: Any) -> Any:
    parameters, lines, names = [], [], {"_MISSING": dataclasses.MISSING}
    for name, field in cls.__dataclass_fields__.items():
        # Slots are set by their descriptors, since __setattr__ refuses.
        names[f"_set_{name}"], value = getattr(cls, name).__set__, name
        if field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"], value = field.default_factory, f"_make_{name}() if {name} is _MISSING else {name}"
        names[f"_{name}"] = field.default
        is_needed = field.default is field.default_factory  # both are MISSING
        parameters.append(name if is_needed else f"{name}=_{name}")
        lines.append(f" _set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec("\n".join([f"def __init__(self, {', '.join(parameters)}):", *lines]), names)
    constructor: Any = names["__init__"]
    constructor.__qualname__ = f"{cls.__qualname__}.__init__"
    constructor.__annotations__ = {**cls.__annotations__, "return": None}
    return constructor


class _Methods:
    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return fields_of(self) == fields_of(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(fields_of(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in fields_of(self).items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(fields_of(self).values())
