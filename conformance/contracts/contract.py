"""What a contract is: a check with a name, and what it says is relied on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.contracts.loading import (
    DIRECT_KEY,
    elsewhere,
    last_sentence,
    options_with,
    refusal_of,
    sum_model,
    with_files,
)
from conformance.drawing.elements import Array

__all__ = [
    "BrokenError", "Contract", "borrowing", "contract", "expect", "expect_equal", "expect_refusal", "meanwhile",
    "sum_of_file",
]  # fmt: skip


class BrokenError(Exception):
    """ONNX Runtime does not do what is relied on."""


@dataclass(frozen=True)
class Contract:
    """A check: `run` gets a folder of its own and returns what it saw, or raises BrokenError."""

    name: str
    run: Callable[[Path], str]

    @property
    def relied_on(self) -> str:
        """What is relied on and where, in one line."""
        return " ".join((self.run.__doc__ or "").split())


def contract(run: Callable[[Path], str]) -> Contract:
    """The decorated check as a contract, under its function's name."""
    return Contract(run.__name__.strip("_").replace("_", " "), run)


def expect(holds: bool, otherwise: str) -> None:
    """Raises BrokenError with what is otherwise."""
    if not holds:
        raise BrokenError(otherwise)


def expect_equal(result: Array, expected: Array, otherwise: str = "wrong values") -> None:
    """Raises BrokenError unless the values are equal, bit by bit."""
    expect(np.array_equal(result, expected), otherwise)


def expect_refusal(load: Callable[[], object], otherwise: str) -> str:
    """What ONNX Runtime said when it refused; raises BrokenError if it did not."""
    said = refusal_of(load)
    expect(said is not None, otherwise)
    return f"refused: {last_sentence(said or '')}"


@contextmanager
def meanwhile(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """A thread that acts over and over, with that many seconds between."""
    finished = threading.Event()

    def act() -> None:
        while not finished.wait(pause):
            action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def sum_of_file(location: str = "w", offset: int = 0) -> bytes:
    """A model that adds the WIDTH floats which are in a file from that byte on."""
    return sum_model(elsewhere("w", location, offset))


def borrowing(**files: Any) -> Any:
    """Options with files in memory that a session uses in place; who asks keeps them."""
    return with_files(options_with(**{DIRECT_KEY: "1"}), **files)
