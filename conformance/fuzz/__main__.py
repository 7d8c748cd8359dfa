"""Models that nobody trusts: whatever is in a file, nothing crashes, hangs or fills the memory, and no result is wrong.

    python -m conformance.fuzz --coverage-guided 30 --corpus DIR   half an hour of atheris on `inspect`
    python -m conformance.fuzz --mutations 20000                   mutated models, with this package and with stock

The first needs atheris (`pip install atheris`; Linux, Python up to 3.13). It gives each model as bytes and as a file with
a data file, links and a FIFO beside it. What it finds stays in the corpus; an input that raises what it should not, takes
longer than 2 s or grows the process by 256 MB ends it, and is written beside the corpus. The second loads and runs each
model in three ways, ours and stock ONNX Runtime's in processes of their own, so that a crash has an owner, and counts the
verdicts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from conformance.fuzz.campaign import judge_mutations
from conformance.fuzz.coverage import fuzz_by_coverage

__all__ = ["main"]


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m conformance.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coverage-guided", type=float, metavar="MINUTES")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="folder for the coverage-guided fuzzer's")
    parser.add_argument("--mutations", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for mutated models that fail")
    arguments = parser.parse_args()
    if arguments.mutations is not None:
        start = time.monotonic()
        counts = judge_mutations(
            arguments.mutations, arguments.seed, arguments.failures, lambda text: print(text, flush=True)
        )
        for (verdict, fused), count in sorted(counts.items(), key=lambda item: -item[1]):
            print(f"{count:6} {verdict.value}{', with fusions' if fused else ''}")
        print(f"{counts.total()} mutated models in {time.monotonic() - start:.0f} s")
        if any(verdict.failed for verdict, _ in counts):
            sys.exit(1)
    if arguments.coverage_guided is not None:
        fuzz_by_coverage(arguments.corpus, arguments.coverage_guided)


if __name__ == "__main__":
    main()
