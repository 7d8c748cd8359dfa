"""Random valid models: never a crash, and never numbers or errors that stock does not give."""

import random

import pytest

from conformance.fuzz.drawn import drawn_model
from conformance.fuzz.judge import Judge


@pytest.mark.parametrize(
    "first", [pytest.param(0, marks=pytest.mark.slow), *(pytest.param(at, marks=pytest.mark.long) for at in (100, 200, 300))]
)
def test_drawn_models(judge: Judge, first: int) -> None:
    for number in range(first, first + 100):
        verdict = judge.verdict(drawn_model(random.Random(number)))
        assert not verdict.failed, f"{number}: {verdict.value}\n{judge.details}"
