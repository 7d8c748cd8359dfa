"""What a table says: medians, ratios, the targets that these are judged by, and of what machine and commit they are."""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnxruntime

import ort_qdq_plugin
from benchmarks.ways import HERE, Checkout, commit_of, title
from conformance.markdown import table
from ort_qdq_plugin.cli import bench
from ort_qdq_plugin.cli.bench import Figure, agreement, spread
from ort_qdq_plugin.cli.measure import Peer, Run, difference

__all__ = ["MB", "MS", "Results", "command", "own_seconds", "stage_seconds"]

MB, MS = 1e6, 1e3
_FIGURES = {
    **bench.FIGURES,
    "init": Figure("init s", lambda run: run.init - run.imported, 2),
    "cpu": Figure("CPU of init s", lambda run: run.cpu - run.import_cpu, 2),
    "load peak": Figure("peak of the load MB", lambda run: run.load_peak / MB, 0),
    "loaded anonymous": Figure("then anonymous MB", lambda run: run.after.anonymous / MB, 0),
    "loaded file": Figure("then file-backed MB", lambda run: run.after.file / MB, 0),
    "packed": Figure("packed MB", lambda run: run.facts.get("packed_bytes", 0) / MB, 1),
    "borrowed": Figure("borrowed MB", lambda run: run.facts.get("borrowed_bytes", 0) / MB, 1),
}


def stage_seconds(run: Run, *stages: str) -> float:
    """Seconds of these stages of a load."""
    return math.fsum(run.facts.get("seconds", {}).get(stage, 0.0) for stage in stages)


def own_seconds(run: Run) -> float:
    """Seconds of a load outside packing and ONNX Runtime's own, and without what was imported."""
    return run.init - run.imported - stage_seconds(run, "pack", "create session")


def command(name: str, doc: str | None, runs: int = 0) -> argparse.ArgumentParser:
    """The arguments of every table; without a number of runs, there is a quick way, with fewer."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=runs, help=f"fresh processes of each contender (default {runs or 5})")
    parser.add_argument(
        "--against", type=Checkout.of, action="append", default=[], metavar="PATH",
        help="another checkout of this package, measured in turns with this one",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the result there too")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    if not runs:
        parser.add_argument("--quick", action="store_true", help="tiny models: does it work, not how fast")
    return parser


_FRESH_PROCESSES = (
    "Medians of fresh, interleaved processes, with the least and the most; MB are 10^6 bytes; peak is VmHWM of the whole "
    "process; CPU is of all threads."
)


class Results:
    """Tables, and what they are judged by."""

    def __init__(self, name: str, how: str = _FRESH_PROCESSES) -> None:
        self._lines = [f"# {name}", ""]
        self._how = how
        self._missed = self._wrong = False

    def say(self, text: str) -> None:
        self._lines.append(text)

    def error(self, text: str) -> None:
        self._wrong = True
        self.say(f"- ERROR: {text}")

    def judge(self, what: str, measured: float, limit: float, unit: str = "x", *, at_least: bool = False) -> None:
        """Add a target, and whether it is reached."""
        passed = measured >= limit if at_least else measured <= limit
        self._missed |= not passed
        sign = ">=" if at_least else "<="
        self.say(f"- {'PASS' if passed else 'FAIL'}: {what}: {measured:.3g} {unit} ({sign} {limit:.3g})")

    def target(
        self, contenders: Mapping[str, Peer], what: Figure | str, ours: str, limit: float, *,
        by: str = "", over: str = "", at_least: bool = False, model: str = "",
    ) -> None:  # fmt: skip
        """Add a target for a contender's median, by another's or over another's, unless one of them did not run."""
        figure = _figure(what)
        measured, base = (_median(contenders, model + key, figure) for key in (ours, by or over or ours))
        if measured is not None and base is not None:
            named, _, unit = figure.title.rpartition(" ")
            words = f"{model}{named}, {ours}{by and f' / {by}'}{over and f' over {over}'}"
            value = measured / base if by else measured - base if over else measured
            self.judge(words, value, limit, "x" if by else unit, at_least=at_least)

    def table(
        self, contenders: Mapping[str, Peer], figures: Iterable[Figure | str], divided: Iterable[Figure | str],
        bases: Sequence[str], *, reference: str = "", may_fail: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Add a table with a row for each contender that `peers` made: medians of figures, with the least and the most.

        Some are also divided by those of other ways, `bases`, and of other checkouts. Outputs are compared with those of the
        way `reference`, if there is one.
        """
        shown = [_figure(named) for named in figures]
        others = [base for base in bases if any(key.endswith(base) for key in contenders)]
        others += sorted({key[key.index("@") :] for key in contenders if "@" in key})
        ratios = [(_figure(named), base) for named in divided for base in others]
        columns = ["load", *(one.title for one in shown)]
        columns += [f"{one.title.rpartition(' ')[0]} / {base}" for one, base in ratios]
        columns += [f"output, against {reference}"] if reference else []
        rows = []
        failed = {key: peer.failure for key, peer in contenders.items() if peer.failure}
        for key, peer in contenders.items():
            model, separator, _ = key.rpartition(": ")
            if key in failed:
                rows.append([title(key), f"failed: {peer.failure}", *[""] * (len(columns) - 2)])
                continue
            if any(run.facts.get("cache") == "made" for run in peer.runs):
                self.error(f"{key}: packed again, although it is in the cache")
            row = [title(key), *(spread(one, peer.runs) for one in shown)]
            for one, base in ratios:
                other = _median(contenders, key + base if base[0] == "@" else model + separator + base, one)
                row.append("" if other is None else f"{peer.median(one.of) / other:.2f}")
            row += [agreement(difference(peer, contenders[model + separator + reference]))] if reference else []
            rows.append(row)
        self._lines += [*table(columns, rows), ""]
        for key, failure in failed.items():
            if not key.endswith(tuple(may_fail)):
                self.error(f"{key}: {failure}")

    def finish(self, args: argparse.Namespace) -> int:
        """Print all, and write it to `args.markdown` too; 1 for an error, and with `args.check` for a missed target."""
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
        versions = f"{ort_qdq_plugin.__version__} {commit_of(HERE.folder)}, onnxruntime {onnxruntime.__version__}"
        self._lines[1:1] = [
            "",
            f"{next(iter(models), 'unknown processor')}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at "
            f"the end; this package {versions}, Python {sys.version.split()[0]}. {self._how}",
            *(f"- {checkout.label}: {checkout.folder}" for checkout in args.against),
        ]
        text = "\n".join(self._lines).rstrip() + "\n"
        print(text)
        if args.markdown:
            args.markdown.write_text(text)
        return int(self._wrong or (args.check and self._missed))


def _figure(named: Figure | str) -> Figure:
    return _FIGURES[named] if isinstance(named, str) else named


def _median(contenders: Mapping[str, Peer], key: str, figure: Figure) -> float | None:
    peer = contenders.get(key)
    return peer.median(figure.of) if peer and peer.runs else None
