"""The table of probes: which program compares which public names, and where."""

import inspect
import re
import types
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import onnxruntime as ort

from tests.surface.models import MODELS
from tests.surface.sides import WAYS, Program, Way

__all__ = ["PROBES", "Probe", "names_used", "probe", "public_names"]


class Probe(NamedTuple):
    """A program that has to do the same on both sides, the public names that it is about, and where it is run."""

    program: Program
    names: frozenset[str]
    models: Sequence[str]
    ways: Sequence[Way]


PROBES: list[Probe] = []


def probe(
    names: str = "", *, models: Sequence[str] = tuple(MODELS), ways: Sequence[Way] = WAYS, **others: str
) -> Callable[[Program], Program]:
    """Enter a program into the table: with names of InferenceSession, of its `constructor`, and by class of `others`."""

    def enter(program: Program) -> Program:
        by_class = {"InferenceSession": names, **others}
        full = frozenset(f"{of}.{name}" for of, listed in by_class.items() for name in listed.split())
        PROBES.append(Probe(program, full, models, ways))
        return program

    return enter


def public_names() -> set[str]:
    """Every public name of the session's class and of what it takes and gives, and every argument of its constructor."""
    session = ort.InferenceSession
    classes = (session, ort.SessionOptions, ort.RunOptions, ort.IOBinding, ort.OrtValue, ort.ModelMetadata, ort.NodeArg)
    names = {f"{found.__name__}.{name}" for found in classes for name in dir(found) if not name.startswith("_")}
    arguments = {name for name in inspect.signature(session).parameters if name != "kwargs"}
    arguments |= set(re.findall(r'kwargs(?:\.get\(|\[)"(\w+)"', inspect.getsource(session.__init__)))
    return names | {f"constructor.{name}" for name in arguments}


def names_used(program: Program) -> set[str]:
    """Every name and string in a program's code, and in the tables beside it that it uses."""

    def used(code: types.CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from used(constant)
            else:
                entries = constant if isinstance(constant, tuple) else (constant,)
                yield from (entry for entry in entries if isinstance(entry, str))

    assert isinstance(program, types.FunctionType)
    names = set(used(program.__code__))
    tables = [program.__globals__.get(name) for name in names]
    return names.union(*(table for table in tables if isinstance(table, dict)))
