"""Bases of the classes of reports, which every process imports: they cost little to make."""

from __future__ import annotations

from enum import Enum

__all__ = ["ByFields", "Sentence"]


class Sentence(Enum):
    """Reasons, each with its sentence."""

    def __str__(self) -> str:
        return str(self.value)


class ByFields:
    """Equality, hash and text by fields: `dataclass` would write and compile them anew for each class, in every process."""

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
