"""Valid models, mutated: never a crash, and never numbers or errors that stock does not give."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conformance.fuzz.judge import Judge
from conformance.fuzz.mutate import beside_a_model, mutated_models
from conformance.fuzz.seeds import seed_models


@pytest.mark.slow
@settings(max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=mutated_models(), as_file=st.booleans())
def test_mutated_models(judge: Judge, model: bytes, as_file: bool) -> None:
    """Never a crash, never numbers or errors that stock does not give."""
    with beside_a_model() as folder:
        path = folder / "model.onnx"
        path.write_bytes(model)
        verdict = judge.verdict(str(path) if as_file else model)
    assert not verdict.failed, f"{verdict.value}\n{judge.details}"


@pytest.mark.slow
def test_models_to_mutate_are_valid(judge: Judge) -> None:
    verdicts = [judge.verdict(model) for model in seed_models()]
    assert not any(verdict.failed for verdict in verdicts)
