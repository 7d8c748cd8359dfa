"""Models that nobody trusts: whatever is in a file, nothing crashes, hangs or fills the memory, and no result is wrong.

    python -m conformance.fuzz --coverage-guided 30 --corpus DIR   half an hour of atheris on `inspect`
    python -m conformance.fuzz --mutations 20000 [--unchanged]     mutated models, with this package and with stock
    python -m conformance.fuzz --drawn 25000 [--level 4]           random valid models, in the same ways

The first needs atheris (`pip install atheris`; Linux, Python up to 3.13). It gives each model as bytes and as a file with
a data file, links and a FIFO beside it. What it finds stays in the corpus; an input that raises what it should not, takes
longer than 2 s or grows the process by 256 MB ends it, and is written beside the corpus. The second loads and runs each
model in three ways, ours and stock ONNX Runtime's in processes of their own, so that a crash has an owner, and counts the
verdicts.
"""

import argparse
import hashlib
import random
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from conformance.fuzz.coverage import fuzz_by_coverage
from conformance.fuzz.drawn import drawn_model
from conformance.fuzz.judge import Judge, Verdict
from conformance.fuzz.mutate import beside_a_model, mutated_models

_ONCE = settings(database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


class _Tally:
    """How often each verdict was given, with fusions and without. Models that fail or crash stock go to a folder."""

    def __init__(self, judge: Judge, failures: Path) -> None:
        self._judge, self._failures = judge, failures
        self._counts: Counter[tuple[Verdict, bool]] = Counter()
        self._start = time.monotonic()

    def add(self, model: bytes, path: Path | None = None) -> None:
        """Judge a model, as bytes or as the file at a path, which has these bytes."""
        verdict = self._judge.verdict(model if path is None else str(path))
        self._counts[verdict, self._judge.fused > 0] += 1
        if verdict.failed or verdict is Verdict.STOCK_CRASHED:
            self._failures.mkdir(parents=True, exist_ok=True)
            name = f"{verdict.name.lower()}-{'file' if path else 'bytes'}-{hashlib.sha256(model).hexdigest()[:12]}"
            (self._failures / f"{name}.onnx").write_bytes(model)
            print(f"{name}: {verdict.value}\n{self._judge.details}", flush=True)
        if self._counts.total() % 1000 == 0:
            print(f"{self._counts.total()} judged", flush=True)

    def finish(self, what: str) -> bool:
        """Print the counts; whether no model failed."""
        for (verdict, fused), count in self._counts.most_common():
            print(f"{count:6} {verdict.value}{', with fusions' if fused else ''}")
        print(f"{self._counts.total()} {what} in {time.monotonic() - self._start:.0f} s")
        return not any(verdict.failed for verdict, _ in self._counts)


def _judge_mutations(count: int, seed: int, unchanged: bool, failures: Path) -> bool:
    """Judge that many mutated models; whether none failed."""
    with beside_a_model() as folder, closing(Judge(unchanged=unchanged)) as judge:
        path, tally = folder / "model.onnx", _Tally(judge, failures)

        @hypothesis_seed(seed)
        @settings(_ONCE, max_examples=count)
        @given(mutated_models(), st.booleans())
        def judged(model: bytes, as_file: bool) -> None:
            path.write_bytes(model)
            tally.add(model, path if as_file else None)

        judged()
    return tally.finish("mutated models")


def _judge_drawn(count: int, seed: int, level: int, failures: Path) -> bool:
    """Judge that many random models, each drawn with a seed of its own, from this one on; whether none failed."""
    with closing(Judge(level)) as judge:
        tally = _Tally(judge, failures)
        for number in range(seed, seed + count):
            tally.add(drawn_model(random.Random(number)))
    return tally.finish(f"drawn models at level {level}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage-guided", type=float, metavar="MINUTES")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="folder for the coverage-guided fuzzer's")
    parser.add_argument("--mutations", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations, or of the first model drawn")
    parser.add_argument("--drawn", type=int, metavar="N")
    parser.add_argument("--level", type=int, choices=(0, 4), default=0, help="of accuracy, for those that are drawn")
    parser.add_argument("--unchanged", action="store_true", help="mutations: hand all models over unchanged, none fused")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for models that fail")
    args = parser.parse_args()
    held = True
    if args.mutations is not None:
        held = _judge_mutations(args.mutations, args.seed, args.unchanged, args.failures)
    if args.drawn is not None:
        held &= _judge_drawn(args.drawn, args.seed, args.level, args.failures)
    if not held:
        sys.exit(1)
    if args.coverage_guided is not None:
        fuzz_by_coverage(args.corpus, args.coverage_guided)


if __name__ == "__main__":
    main()
