"""Frozen dataclasses behave as those of the standard library, which are the reference."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from ort_qdq_plugin.system.frozen import dataclass

NAMES = {"copy": copy, "dataclasses": dataclasses, "inspect": inspect, "pickle": pickle}


def declared(decorate: Any) -> Any:
    @decorate(frozen=True, slots=True)
    class Point:
        """A point."""

        x: int
        name: str = "p"
        tags: Mapping[str, int] = dataclasses.field(default_factory=dict)

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError(self.x)

    # By this name pickle finds it.
    Point.__qualname__ = "Point"
    return Point


def outcome(expression: str, cls: Any) -> Any:
    globals()["Point"] = cls
    try:
        return eval(expression, {**NAMES, "Point": cls})
    except Exception as error:
        return type(error)


EXPRESSIONS = """
dataclasses.astuple(Point(1)), dataclasses.astuple(Point(x=1, name="n", tags={"a": 1}))
dataclasses.asdict(dataclasses.replace(Point(1), name="n")), repr(Point(1))
Point()
Point(1, x=1)
Point(1, other=2)
Point(1, "n", {}, 4)
Point(-1)
setattr(Point(1), "x", 2)
delattr(Point(1), "x")
iter(Point(1))
Point(1)[0]
len(Point(1))
hash(Point(1))
hash(Point(1, "n", ())) == hash(Point(1, "n", ())), hasattr(Point(1), "__dict__"), Point(1).tags is Point(1).tags
Point(1) == Point(1), Point(1) == Point(2), Point(1) == (1, "p", {})
[made == Point(1) for made in (copy.copy(Point(1)), copy.deepcopy(Point(1)), pickle.loads(pickle.dumps(Point(1))))]
[(one.name, str(one.annotation)) for one in inspect.signature(Point).parameters.values()]
[field.name for field in dataclasses.fields(Point)], Point.__match_args__, Point.__doc__
"""


@pytest.mark.parametrize("expression", EXPRESSIONS.strip().splitlines())
def test_as_in_the_standard_library(expression: str) -> None:
    assert outcome(expression, declared(dataclass)) == outcome(expression, declared(dataclasses.dataclass))
