"""Processes that load models which nobody trusts, one module's tests after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.fuzz.judge import Judge
from conformance.fuzz.worker import Worker


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
