"""What a contract is: a check with a name, and what it says is relied on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BrokenError", "Chapter", "Check", "Contract", "expect"]

Check = Callable[[Path], str]


class BrokenError(Exception):
    """ONNX Runtime does not do what is relied on."""


@dataclass(frozen=True)
class Contract:
    """A check: `run` gets a folder of its own and returns what it saw, or raises BrokenError."""

    name: str
    run: Check

    @property
    def relied_on(self) -> str:
        """What is relied on and where, in one line."""
        return " ".join((self.run.__doc__ or "").split())


def expect(holds: bool, otherwise: str) -> None:
    """Raises BrokenError with what is otherwise."""
    if not holds:
        raise BrokenError(otherwise)


class Chapter:
    """The contracts of one module."""

    def __init__(self) -> None:
        self.contracts: list[Contract] = []

    def contract(self, run: Check) -> Check:
        """Adds the decorated check, under its function's name."""
        self.contracts.append(Contract(run.__name__.strip("_").replace("_", " "), run))
        return run
