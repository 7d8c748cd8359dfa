"""Judges thousands of mutated models."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from conformance.fuzz.judge import Judge, Verdict
from conformance.fuzz.mutate import mutated_models
from conformance.fuzz.surroundings import beside_a_model

__all__ = ["judge_mutations"]


def judge_mutations(count: int, seed: int, failures: Path, tell: Callable[[str], None]) -> Counter[tuple[Verdict, bool]]:
    """Judge so many mutated models; how often each verdict was given, by whether anything was fused.

    Those that fail, and those that crash stock, are written to the folder `failures`.
    """
    counts: Counter[tuple[Verdict, bool]] = Counter()
    with beside_a_model() as folder, ExitStack() as closing:
        judge = Judge()
        closing.callback(judge.close)
        path = folder / "model.onnx"

        @hypothesis_seed(seed)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated_models(), st.booleans())
        def judged(model: bytes, as_file: bool) -> None:
            path.write_bytes(model)
            verdict = judge.verdict(str(path) if as_file else model)
            counts[verdict, judge.fused > 0] += 1
            if verdict.failed or verdict is Verdict.STOCK_CRASHED:
                failures.mkdir(parents=True, exist_ok=True)
                name = f"{verdict.name.lower()}-{'file' if as_file else 'bytes'}-{hashlib.sha256(model).hexdigest()[:12]}"
                (failures / f"{name}.onnx").write_bytes(model)
                tell(f"{name}: {verdict.value}\n{judge.details}")
            if counts.total() % 1000 == 0:
                tell(f"{counts.total()} judged")

        judged()
    return counts
