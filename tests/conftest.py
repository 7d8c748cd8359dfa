"""What all tests find: interrupts that work, and processes that load models which nobody trusts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.fuzz.judge import Judge
from conformance.fuzz.worker import Worker


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    # A shell has what it runs in the background ignore them, and the processes that tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The path of a directory for a cache, which is not there yet."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.close()
