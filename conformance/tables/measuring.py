"""Measuring in fresh processes: jobs that take turns, their medians, and the targets these are judged by.

A module that measures has a `Job` (a dataclass of plain values), does one when it is called with ``--child JSON``, and
prints what came of it as a line of JSON: a `Run`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

from ort_qdq_plugin.cli.machine import make_ready
from ort_qdq_plugin.system.platform import host

__all__ = [
    "MB",
    "Memory",
    "Results",
    "Run",
    "Section",
    "Target",
    "facts",
    "finish",
    "interleave",
    "memory",
    "own_seconds",
    "row",
    "say",
    "stages",
]

MB = 1e6
_SAMPLE_SECONDS = 0.005


# ---- one run, in its own process -------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, from /proc. File: all that is mapped from files or shared."""

    anon: int
    file: int
    high: int  # VmHWM, the most that was ever resident


_NOT_LOOKED_AT = Memory(0, 0, 0)


@dataclass(frozen=True)
class Run:
    """What a child measured, and what its parent saw meanwhile. `report` has this package's own figures."""

    init_seconds: float = 0.0
    token_seconds: float = 0.0
    before: Memory = _NOT_LOOKED_AT
    after: Memory = _NOT_LOOKED_AT  # once the session exists
    end: Memory = _NOT_LOOKED_AT
    report: dict[str, Any] = field(default_factory=dict)
    peak_anon: int = 0
    peak_file: int = 0

    def __str__(self) -> str:
        return (
            f"init {self.init_seconds:.3f} s, token {self.token_seconds * 1e3:.3g} ms, peak {self.end.high / MB:.0f} MB"
            if self.init_seconds
            else f"peak {self.peak_anon / MB:.0f} MB"
        )


def memory(pid: int | str = "self") -> Memory:
    """Of a process; KeyError if it has none left."""
    sizes = host.sizes_of(pid)
    return Memory(sizes["RssAnon"], sizes["RssFile"] + sizes["RssShmem"], sizes["VmHWM"])


def facts(report: Any) -> dict[str, Any]:
    """The sums of one of this package's reports; {} of None."""
    if report is None:
        return {}
    return {
        "fused": len(report.fused),
        "unfused": [f"{left.dequantize}: {left.reason}" for left in report.unfused],
        "route": report.route,
        "cache": report.cache,
        "shared_bytes": report.shared_bytes,
        "packed_bytes": report.packed_bytes,
        "borrowed_bytes": report.borrowed_bytes,
        "seconds": dict(report.seconds),
    }


# ---- running children ------------------------------------------------------------------------------


class _Job(Protocol):
    """What a child is to do; a dataclass."""

    @property
    def model(self) -> str: ...


R = TypeVar("R", bound=Run)


@dataclass
class Results(Generic[R]):
    """All runs of one contender, and why there are no more of them."""

    runs: list[R] = field(default_factory=list)
    failure: str = ""

    def __bool__(self) -> bool:
        return bool(self.runs) and not self.failure

    def median(self, value: Callable[[R], float]) -> float:
        """The median of one figure over the runs."""
        return float(median(value(run) for run in self.runs))

    @property
    def init(self) -> float:
        """Median seconds of the load."""
        return self.median(lambda run: run.init_seconds)

    @property
    def token(self) -> float:
        """Median seconds of one token."""
        return self.median(lambda run: run.token_seconds)

    @property
    def peak(self) -> float:
        """Median VmHWM of the whole process, runs included."""
        return self.median(lambda run: run.end.high)

    @property
    def report(self) -> dict[str, Any]:
        """The last run's report, {} for stock."""
        return self.runs[-1].report if self.runs else {}


def interleave(
    module: str, jobs: Mapping[str, _Job], runs: int, kind: type[R], limits: Mapping[str, int] | None = None
) -> dict[str, Results[R]]:
    """Have `module` do every job `runs` times (or its limit), in turns: a machine's speed drifts."""
    results: dict[str, Results[R]] = {name: Results() for name in jobs}
    for turn in range(runs):
        for name, job in jobs.items():
            result = results[name]
            if result.failure or turn >= (limits or {}).get(name, runs):
                continue
            try:
                run = _measure(module, job, kind)
            except RuntimeError as error:
                result.failure = str(error)
                say(f"  {name}: failed: {error}")
                continue
            result.runs.append(run)
            say(f"  {turn + 1}/{runs} {name:18} {run}")
    return results


def _measure(module: str, job: _Job, kind: type[R], timeout: float = 1800) -> R:
    """Do a job in a fresh process; RuntimeError with the end of its messages if it fails."""
    model = Path(job.model)
    nbytes = sum(path.stat().st_size for path in model.parent.glob(f"{model.stem}.*"))
    make_ready(nbytes, [model, model.with_name(f"{model.name}.data")])
    command = [sys.executable, "-m", module, "--child", json.dumps(asdict(job))]  # type: ignore[call-overload]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks = [0, 0]
    watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
    watcher.start()
    try:
        out, messages = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise RuntimeError(f"took longer than {timeout:.0f} s") from None
    finally:
        watcher.join()
    if process.returncode:
        tail = messages.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"exit code {process.returncode}: {tail[0][:300]}")
    raw = json.loads(out.strip().splitlines()[-1])
    for key in ("before", "after", "end"):
        raw[key] = Memory(**raw[key])
    return replace(kind(**raw), peak_anon=peaks[0], peak_file=peaks[1])


def _watch(process: subprocess.Popen[str], peaks: list[int]) -> None:
    """Sample a child's memory until it ends."""
    while process.poll() is None:
        try:
            now = memory(process.pid)
        except KeyError:
            # It is gone, or a zombie, which has no memory left to tell of.
            return
        peaks[0] = max(peaks[0], now.anon)
        peaks[1] = max(peaks[1], now.file)
        time.sleep(_SAMPLE_SECONDS)


def stages(results: Results[R]) -> dict[str, float]:
    """Median seconds of each of the report's stages."""
    seconds = [run.report["seconds"] for run in results.runs]
    return {name: float(median(one[name] for one in seconds)) for name in seconds[0]}


def own_seconds(run: Run) -> float:
    """Seconds of a load outside packing and hand-over."""
    seconds = run.report["seconds"]
    return run.init_seconds - float(seconds.get("pack", 0.0)) - float(seconds.get("create session", 0.0))


# ---- telling ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One thing to reach, and what was measured."""

    what: str
    measured: float
    limit: float
    unit: str = "x"
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it is reached."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        verdict, sign = "PASS" if self.passed else "FAIL", ">=" if self.at_least else "<="
        return f"- {verdict}: {self.what}: {self.measured:.3g} {self.unit} ({sign} {self.limit:.3g})"


@dataclass(frozen=True)
class Section:
    """A part of the result: text, and what it is judged by."""

    title: str
    lines: list[str]
    targets: list[Target] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdicts = [str(target) for target in self.targets] + [f"- ERROR: {error}" for error in self.errors]
        return "\n".join([f"## {self.title}", "", *self.lines, "", *verdicts]).rstrip() + "\n"


def finish(title: str, sections: Sequence[Section], args: argparse.Namespace) -> int:
    """Print the sections, write them to `args.markdown` too; 1 for an error, and with `args.check` for a missed target."""
    text = "\n".join([f"# {title}\n", _machine() + "\n", *map(str, sections)])
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    missed = [target for section in sections for target in section.targets if not target.passed]
    errors = [error for section in sections for error in section.errors]
    return int(bool(errors or (args.check and missed)))


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def say(text: str) -> None:
    """Tell whoever waits how it goes."""
    print(text, file=sys.stderr, flush=True)


def _machine() -> str:
    """Where this was measured."""
    version = importlib.import_module("onnxruntime").__version__
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, onnxruntime "
        f"{version}, Python {platform.python_version()}, load average "
        f"{os.getloadavg()[0]:.1f} at the end. Medians of fresh, interleaved processes; "
        "MB are 10^6 bytes; peak is VmHWM of the whole process."
    )
