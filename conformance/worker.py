"""Processes that call functions, one after another, and whose death does no harm."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

__all__ = ["Crash", "Worker", "in_fresh_process"]

_T = TypeVar("_T")


class Crash(Exception):
    """A worker died, or gave no answer in time."""


class Worker:
    """A process that calls functions; `setup` first. It is started when it is needed, again after a crash."""

    def __init__(self, setup: Callable[[], object] | None = None) -> None:
        self._setup = setup
        self._process: Any = None
        self._connection: Connection[Any, Any] | None = None

    def send(self, function: Callable[..., object], *arguments: object) -> None:
        """Have it call the function; what the function returns is the next `answer`."""
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, end = context.Pipe()
            self._process = context.Process(target=_work, args=(end, self._setup), daemon=True)
            self._process.start()
            end.close()
        with suppress(OSError):  # its death is found by `answer`
            self._connection.send((function, arguments))

    def answer(self, seconds: float | None = None) -> Any:
        """What the function returned; raises Crash where the process does not live to tell it, or not in that time."""
        assert self._connection is not None
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
            reason = f"no answer within {seconds} s"
        except (EOFError, OSError):
            self._process.join(seconds)
            reason = f"exit code {self._process.exitcode}"
        self.close()
        raise Crash(reason)

    def call(self, function: Callable[..., _T], *arguments: object, seconds: float | None = None) -> _T:
        """What the function returns; errors are those of `answer`."""
        self.send(function, *arguments)
        result: _T = self.answer(seconds)
        return result

    def is_alive(self) -> bool:
        """Whether it was started and not closed."""
        return self._connection is not None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._connection = self._process = None


def in_fresh_process(function: Callable[..., _T], *arguments: object) -> _T:
    with closing(Worker()) as worker:
        return worker.call(function, *arguments)


def _work(connection: Connection[Any, Any], setup: Callable[[], object] | None) -> None:
    if setup:
        setup()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(function(*arguments))
