"""Fuzzing `inspect`, guided by which of its branches an input reaches."""

import importlib
import os
import random
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from conformance.fuzz.mutate import beside_a_model, mutate
from conformance.fuzz.seeds import seed_models
from conformance.fuzz.worker import MAX_BYTES, MAX_SECONDS

__all__ = ["fuzz_by_coverage"]

_MAX_MODEL_BYTES = 1 << 15  # of the coverage-guided fuzzer's inputs
_STRUCTURED = 0.7  # share of its mutations that keep a model a model


def fuzz_by_coverage(corpus: Path, minutes: float) -> None:
    """Fuzz `inspect` until time is up or something is found; ends the process."""
    atheris: Any = importlib.import_module("atheris")  # not on every Python
    if "ort_qdq_plugin.session" in sys.modules:
        raise RuntimeError("this package was imported before atheris could instrument it")
    with atheris.instrument_imports(include=["ort_qdq_plugin"]):
        from ort_qdq_plugin import ModelError, inspect

        # Imports all that is ever imported for a model, so that no branch of it is left uncounted.
        for model in seed_models():
            inspect(model, check=False)

    corpus.mkdir(parents=True, exist_ok=True)
    for number, model in enumerate(seed_models()):
        (corpus / f"seed-{number}").write_bytes(model)

    def target(data: bytes) -> None:
        path.write_bytes(data)
        for model in (data, str(path)):
            try:
                report = inspect(model, check=False)
                assert report.to_dict()
                assert str(report)
            except (ModelError, OSError):
                continue
            except BaseException:
                # Left to atheris, the process is gone before the input is written.
                Path(f"{corpus}.found-error").write_bytes(data)
                traceback.print_exc()
                os._exit(1)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < _STRUCTURED:
            mutated = mutate(rng, data)
            if 0 < len(mutated) <= max_size:
                return mutated
        return bytes(atheris.Mutate(data, max_size))

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    flags = {
        "timeout": MAX_SECONDS, "rss_limit_mb": resident + (MAX_BYTES >> 20), "max_len": _MAX_MODEL_BYTES, "mutate_depth": 2,
        "max_total_time": round(60 * minutes), "print_final_stats": 1, "artifact_prefix": f"{corpus}.found-",
    }  # fmt: skip
    with beside_a_model() as folder:
        path = folder / "model.onnx"
        arguments = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)]
        atheris.Setup(arguments, target, custom_mutator=mutator)
        atheris.Fuzz()
