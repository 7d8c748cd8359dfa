"""The pattern table through other execution providers than the CPU's.

    python -m conformance.platforms.provider_patterns [--folder DIR] [--as-intel] [--only GLOB] [--markdown FILE]

Every pattern of `conformance.patterns` is loaded by stock ONNX Runtime and by this package with a provider of
`conformance.platforms.providers`, whose options these are, at accuracy level 0. A row says how many came out right, wrong,
or not at all, of those that this package fuses and of the others, and who runs the fused nodes. It fails if this package is
wrong, or ends in an error, where stock is right. The exit code is 1 if one fails.
"""

import json
import sys
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import onnxruntime as ort

from conformance.checks import run
from conformance.patterns.catalogue import PATTERNS
from conformance.patterns.judging import error_of, outputs_of, reference_outputs
from conformance.platforms.providers import FUSED, WAYS, Bench, assigned, benched, command, in_environment, take_for_intel
from conformance.tolerances import largest_error
from ort_qdq_plugin.ort.keys import ACCURACY_KEY

_ROUNDS = 4  # the accuracy level whose error a provider may have: OpenVINO rounds activations to 8 bits
_COLUMNS = ("provider", "patterns", "this package / stock", "fused nodes run on", "verdict")
_CHECKED = ("onnxruntime-ep-openvino, devices added", "onnxruntime-ggml, devices added")
_RIGHT, _WRONG, _ERROR, _ENDED = "right", "wrong", "an error", "the process is ended"


class _Told(NamedTuple):
    """What became of a pattern, by stock and by this package."""

    pattern: int
    ours: bool
    verdict: str
    fused: int = 0
    on: tuple[tuple[str, str], ...] = ()


def _child(way: str, first: list[Any], *, as_intel: bool) -> None:
    """Load the patterns from one on, by stock or by this package, and print what became of each."""
    from ort_qdq_plugin import create_session, report_of

    if as_intel:
        take_for_intel()
    for at, ours in [(at, ours) for at in range(len(PATTERNS)) for ours in (False, True) if [at, ours] >= first]:
        pattern = PATTERNS[at]
        model = pattern.build()
        options, providers = WAYS[way].make()
        options.add_session_config_entry(ACCURACY_KEY, "0")
        # Before what may end the process.
        print(json.dumps(_Told(at, ours, _ENDED)), flush=True)
        wanted = reference_outputs(model)
        try:
            session = (create_session if ours else ort.InferenceSession)(model.SerializeToString(), options, providers)
            error = error_of(outputs_of(model, session), wanted)
        except Exception:
            print(json.dumps(_Told(at, ours, _ERROR)), flush=True)
            continue
        verdict = _RIGHT if error <= largest_error(pattern.precision, _ROUNDS) else _WRONG
        report = report_of(session)
        on = tuple(sorted({(node, provider) for node, provider in assigned(session) if node in FUSED}))
        print(json.dumps(_Told(at, ours, verdict, len(report.fused) if report else 0, on)), flush=True)


def _row(bench: Bench, way: str, *, as_intel: bool) -> tuple[list[str], list[str]]:
    told: dict[tuple[int, bool], _Told] = {}
    last: Any = None
    while last != (len(PATTERNS) - 1, True):
        first = (0, False) if last is None else (last[0] + last[1], not last[1])
        job = {"way": way, "first": first, "as_intel": as_intel}
        done = in_environment(bench.python(WAYS[way].environment), "provider_patterns", job)
        lines = [_Told(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
        if not lines:
            raise RuntimeError(done.stderr[-2000:])
        told |= {(one.pattern, one.ours): one for one in lines}
        last = max(told)
    on: Counter[str] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    problems = []
    for at, pattern in enumerate(PATTERNS):
        stock, ours = told[at, False], told[at, True]
        counts["fused" if ours.fused else "others", f"{ours.verdict} / {stock.verdict}"] += 1
        on.update(f"{node}: {provider}" for node, provider in map(tuple, ours.on))
        if ours.verdict != _RIGHT and (stock.verdict == _RIGHT or ours.verdict == _ENDED):
            problems.append(f"{pattern.name}: {ours.verdict}")
    texts = [
        "; ".join(f"{count} {what}" for (kind, what), count in sorted(counts.items()) if kind == wanted)
        for wanted in ("fused", "others")
    ]
    ran = "; ".join(f"{what} ({count})" for what, count in sorted(on.items()))
    cells = [way, str(len(PATTERNS)), f"fused: {texts[0]}; others: {texts[1]}", ran]
    return [*cells, f"**FAIL**: {'; '.join(problems)}" if problems else "holds"], problems


def _main() -> int:
    args = command(__doc__)
    if args.child:
        _child(**json.loads(args.child))
        return 0
    with benched(args) as bench:
        checks = {way: way for way in _CHECKED}
        return run(checks, partial(_row, bench, as_intel=args.as_intel), _COLUMNS, args, "# The pattern table")


if __name__ == "__main__":
    sys.exit(_main())
