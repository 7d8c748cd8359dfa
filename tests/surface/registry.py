"""Which public name is compared by which program."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnxruntime as ort

from tests.surface.models import MODELS
from tests.surface.sides import WAYS, Program, Way

__all__ = ["COMPARED", "CONSTRUCTOR", "Comparison", "covers", "names_used", "public_names"]

CONSTRUCTOR = "InferenceSession()"


@dataclass(frozen=True)
class Comparison:
    """A program that has to do the same on both sides, the public names that it is about, and where it is run."""

    program: Program
    names: tuple[str, ...]
    models: Sequence[str]
    ways: Sequence[Way]


COMPARED: list[Comparison] = []


def covers(*names: str, models: Sequence[str] = tuple(MODELS), ways: Sequence[Way] = WAYS) -> Callable[[Program], Program]:
    """Enter a program into the table. A name without a class is one of InferenceSession's."""

    def enter(program: Program) -> Program:
        full = tuple(name if "." in name else f"InferenceSession.{name}" for name in names)
        COMPARED.append(Comparison(program, full, models, ways))
        return program

    return enter


def public_names() -> set[str]:
    """Every public name of the session's class and of what it takes and gives, and every argument of its constructor."""
    session = ort.InferenceSession
    classes = (session, ort.SessionOptions, ort.RunOptions, ort.IOBinding, ort.OrtValue, ort.ModelMetadata, ort.NodeArg)
    names = {f"{found.__name__}.{name}" for found in classes for name in dir(found) if not name.startswith("_")}
    arguments = {name for name in inspect.signature(session).parameters if name != "kwargs"}
    arguments |= set(re.findall(r'kwargs(?:\.get\(|\[)"(\w+)"', inspect.getsource(session.__init__)))
    return names | {f"{CONSTRUCTOR}.{name}" for name in arguments}


def names_used(program: Program) -> set[str]:
    """Every name and string in a program's code, and in that of the functions beside it that it calls."""

    def used(code: types.CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, str):
                yield constant
            elif isinstance(constant, tuple):
                yield from (entry for entry in constant if isinstance(entry, str))
            elif isinstance(constant, types.CodeType):
                yield from used(constant)

    def code_of(function: object) -> types.CodeType | None:
        return function.__code__ if isinstance(function, types.FunctionType) else None

    code = code_of(program)
    names = set(used(code)) if code is not None else set()
    for name in tuple(names):
        value = getattr(inspect.getmodule(program), name, None)
        beside = code_of(value)
        names |= set(used(beside)) if beside is not None else set(value) if isinstance(value, dict) else set()
    return names
