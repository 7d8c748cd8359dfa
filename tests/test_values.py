"""Named tuples that cost little to make, against those of `typing`."""

from __future__ import annotations

import copy
import pickle
import typing
from collections.abc import Callable
from typing import Any

import pytest

from ort_qdq_plugin import values


class Ours(values.NamedTuple):
    """A value."""

    name: str
    size: int = 1
    more: tuple[int, ...] = ()

    @property
    def double(self) -> int:
        return 2 * self.size


class Theirs(typing.NamedTuple):
    """A value."""

    name: str
    size: int = 1
    more: tuple[int, ...] = ()

    @property
    def double(self) -> int:
        return 2 * self.size


MADE: list[Callable[[Any], Any]] = [
    lambda kind: kind("a"),
    lambda kind: kind("a", 2, (3,)),
    lambda kind: kind(more=(3,), name="a"),
    lambda kind: kind("a", more=(3,)),
    lambda kind: kind("a", 2)._replace(size=3, more=(4,)),
    lambda kind: kind._make(["a", 2, ()]),
]


@pytest.mark.parametrize("make", MADE)
def test_are_as_those_of_typing(make: Callable[[Any], Any]) -> None:
    ours, theirs = make(Ours), make(Theirs)
    assert (ours, hash(ours), ours.double) == (theirs, hash(theirs), theirs.double)
    assert (ours.name, ours.size, ours.more) == (*ours,) == (theirs.name, theirs.size, theirs.more)
    assert ours._asdict() == theirs._asdict()
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), ours._replace()):
        assert (type(again), again) == (Ours, ours)
    assert not hasattr(ours, "__dict__")
    # `copy.replace` calls this, since Python 3.13.
    assert ours.__replace__(size=7) == theirs._replace(size=7)


def test_classes_are_too() -> None:
    for name in ("_fields", "_field_defaults", "__match_args__", "__doc__", "__slots__"):
        assert getattr(Ours, name, None) == getattr(Theirs, name, None)
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)

    class Heir(Ours):
        """With a method more."""

        def half(self) -> float:
            return self.size / 2

    assert (Heir("a", 3).half(), Heir._fields, type(Heir("a")._replace(size=2))) == (1.5, Ours._fields, Heir)
    assert vars(Heir("a")) == {}


def test_fields_may_have_any_name() -> None:
    class Odd(values.NamedTuple):
        cls: int
        self: int = 2
        values: int = 3
        named: int = 4

    assert Odd(cls=1, named=5)._replace(self=6, cls=7) == (7, 6, 3, 5)


WRONG: list[Callable[[Any], Any]] = [
    lambda kind: kind(),
    lambda kind: kind("a", 1, (), 4),
    lambda kind: kind("a", name="b"),
    lambda kind: kind("a", 1, (), length=4),
    lambda kind: kind("a", length=4),
    lambda kind: kind(size=1),
    lambda kind: kind._make(["a", 2, (), 3]),
]


@pytest.mark.parametrize("make", WRONG)
def test_wrong_values_are_refused(make: Callable[[Any], Any]) -> None:
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError):
            make(kind)
    with pytest.raises(AttributeError):
        Ours("a").size = 2  # type: ignore[misc]
