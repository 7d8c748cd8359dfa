"""The models that faults are met with, and what rows need again and again."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from benchmarks.big_models import Pair, write_pair
from conformance.faults.job import Job, LoadProcess, Outcome, Verdict, judge, listing, settled_listing
from ort_qdq_plugin.cli.demo_model import Decoder

__all__ = ["UNUSED_UID", "Fault", "PairName", "Scene", "Skipped", "needs_root"]

UNUSED_UID = 54321
"""An ordinary user that no machine has."""

# Shapes of the models: some 20 MB of weights and scales, or 2 MB.
_SHAPE, _QUICK_SHAPE = Decoder(2, 768, 3072, 16384), Decoder(1, 256, 1024, 4096)
PairName = Literal["packed", "packed, other", "in place", "in place, other", "inline"]
"""Models with weights that have to be packed, that are used where they are, or that are inside the model's own file."""
_PAIRS: Mapping[PairName, tuple[str, Mapping[str, Any]]] = {
    "packed": ("uint4", {}),
    "packed, other": ("uint4", {"seed": 1}),
    "in place": ("uint4-nmajor", {}),
    "in place, other": ("uint4-nmajor", {"seed": 1}),
    "inline": ("uint4", {"storage": "inline"}),
}


class Skipped(Exception):
    """Why a row cannot be had here."""


def needs_root() -> None:
    """Skips the row for anybody else."""
    if os.geteuid() != 0:
        raise Skipped("needs root")


class Scene:
    """A folder with the models, and what rows need again and again."""

    def __init__(self, folder: Path, quick: bool = False, kills: int = 100) -> None:
        self.folder = folder
        self.kills = kills
        self._shape = _QUICK_SHAPE if quick else _SHAPE
        self._results: dict[Path, str] = {}
        self.spill, self.temporary, self.home = (folder / name for name in ("spill", "tmp", "home"))
        for made in (self.spill, self.temporary, self.home):
            made.mkdir()
            made.chmod(0o1777)

    @cached_property
    def loaders(self) -> tuple[str, ...]:
        """Our routes. By path needs a directory that is safe, which none seems where root is not mapped (unshare -r)."""
        folders = [self.spill, *self.spill.parents]
        return ("ours", "by path") if {folder.stat().st_uid for folder in folders} <= {0, os.geteuid()} else ("ours",)

    @property
    def contenders(self) -> list[tuple[PairName, str]]:
        """Models and routes: packed weights by each, weights in place by the first."""
        return [*(("packed", loader) for loader in self.loaders), ("in place", "ours")]

    def pair(self, name: PairName) -> Pair:
        """A model in QDQ form and in ONNX Runtime's own, written when it is first asked for."""
        variant, changes = _PAIRS[name]
        return write_pair(self.folder / name, variant, self._shape, **changes)

    def results_of(self, *names: PairName) -> set[str]:
        """What stock ONNX Runtime makes of models, of the QDQ form and of the fused one."""
        paths = {path for name in names for path in (self.pair(name).qdq, self.pair(name).qop)}
        for path in paths - self._results.keys():
            outcome = self.run(Job(str(path), "stock"))
            if not outcome.result:
                raise RuntimeError(f"{path}: {outcome}")
            self._results[path] = outcome.result
        return {self._results[path] for path in paths}

    def job(self, name: PairName = "packed", **changes: Any) -> Job:
        """A job for a model with its spill file here; skips the row where it needs another user and there is none."""
        if changes.get("uid"):
            needs_root()
            if Path("/proc/self/uid_map").read_text().split()[2] == "1":
                raise Skipped("needs other users, this namespace has none")
        return replace(Job(str(self.pair(name).qdq), spill_dir=str(self.spill)), **changes)

    def start(self, job: Job) -> LoadProcess:
        return LoadProcess(job, job.temporary or str(self.temporary), str(self.home))

    def run(self, job: Job) -> Outcome:
        return self.start(job).outcome()

    def watch(self, job: Job, run: Callable[[Job], Outcome] | None = None) -> tuple[Outcome, set[str]]:
        """The outcome of a job, and what is there afterwards that was not."""
        watched = [job.spill_dir or self.spill, job.temporary or self.temporary, Path(job.model).parent]
        before = listing(watched)
        return (run or self.run)(job), settled_listing(watched, before)

    def compare(
        self, job: Job, results: set[str], *, tries: int = 1, slack: Sequence[int] = (), alike: frozenset[str] = frozenset()
    ) -> Verdict:
        """The job by us and by stock ONNX Runtime, judged.

        `slack` is by how much more of what is limited we may need: stock may have failed with that much less.
        """
        verdict = Verdict("", "not run")
        stock_job = replace(job, loader="stock", again=False)
        for _ in range(tries):
            ours, left = self.watch(job)
            # Where we have a session, stock ONNX Runtime does not matter.
            verdict = judge(ours, ours if ours.result else self.watch(stock_job)[0], results, left, alike)
            if not verdict.problem:
                return verdict
        for less in slack if not ours.result else ():
            stock, _ = self.watch(replace(stock_job, value=job.value - less))
            with_less = judge(ours, stock, results, left, alike)
            if not with_less.problem:
                return replace(with_less, what=f"{with_less.what} with a little less")
        return verdict

    def both_routes(self, name: PairName = "packed", **changes: Any) -> list[Verdict]:
        """A model by each of our routes, unless it is changed one whose weights are packed."""
        results = self.results_of(name)
        return [self.compare(self.job(loader=loader, **changes), results) for loader in self.loaders]


@dataclass(frozen=True)
class Fault:
    """A row of the table: what is broken, how, at which stage of a load, and the judged loads that meet it."""

    name: str
    how: str
    stage: str
    run: Callable[[Scene], list[Verdict]]
    quick: bool = False
