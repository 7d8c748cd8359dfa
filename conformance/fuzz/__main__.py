"""Models that nobody trusts: whatever is in a file, nothing crashes, hangs or fills the memory, and no result is wrong.

    python -m conformance.fuzz --coverage-guided 30 --corpus DIR   half an hour of atheris on `inspect`
    python -m conformance.fuzz --mutations 20000                   mutated models, with this package and with stock

The first needs atheris (`pip install atheris`; Linux, Python up to 3.13). It gives each model as bytes and as a file with
a data file, links and a FIFO beside it. What it finds stays in the corpus; an input that raises what it should not, takes
longer than 2 s or grows the process by 256 MB ends it, and is written beside the corpus. The second loads and runs each
model in three ways, ours and stock ONNX Runtime's in processes of their own, so that a crash has an owner, and counts the
verdicts.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from conformance.fuzz.coverage import fuzz_by_coverage
from conformance.fuzz.judge import Judge, Verdict
from conformance.fuzz.mutate import beside_a_model, mutated_models

_ONCE = settings(database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


def _judge_mutations(count: int, seed: int, failures: Path) -> Counter[tuple[Verdict, bool]]:
    """Judge that many mutated models; how often each verdict was given, by whether anything was fused.

    Those that fail, and those that crash stock, are written to the folder `failures`.
    """
    counts: Counter[tuple[Verdict, bool]] = Counter()
    with beside_a_model() as folder, closing(Judge()) as judge:
        path = folder / "model.onnx"

        @hypothesis_seed(seed)
        @settings(_ONCE, max_examples=count)
        @given(mutated_models(), st.booleans())
        def judged(model: bytes, as_file: bool) -> None:
            path.write_bytes(model)
            verdict = judge.verdict(str(path) if as_file else model)
            counts[verdict, judge.fused > 0] += 1
            if verdict.failed or verdict is Verdict.STOCK_CRASHED:
                failures.mkdir(parents=True, exist_ok=True)
                name = f"{verdict.name.lower()}-{'file' if as_file else 'bytes'}-{hashlib.sha256(model).hexdigest()[:12]}"
                (failures / f"{name}.onnx").write_bytes(model)
                print(f"{name}: {verdict.value}\n{judge.details}", flush=True)
            if counts.total() % 1000 == 0:
                print(f"{counts.total()} judged", flush=True)

        judged()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage-guided", type=float, metavar="MINUTES")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="folder for the coverage-guided fuzzer's")
    parser.add_argument("--mutations", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for mutated models that fail")
    args = parser.parse_args()
    if args.mutations is not None:
        start = time.monotonic()
        counts = _judge_mutations(args.mutations, args.seed, args.failures)
        for (verdict, fused), count in counts.most_common():
            print(f"{count:6} {verdict.value}{', with fusions' if fused else ''}")
        print(f"{counts.total()} mutated models in {time.monotonic() - start:.0f} s")
        if any(verdict.failed for verdict, _ in counts):
            sys.exit(1)
    if args.coverage_guided is not None:
        fuzz_by_coverage(args.corpus, args.coverage_guided)


if __name__ == "__main__":
    main()
