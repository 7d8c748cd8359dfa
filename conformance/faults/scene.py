"""The models that faults are met with, and what rows need again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.big_models import Pair, write_pair
from conformance.faults.job import Job, Outcome
from conformance.faults.judging import Verdict, judge
from conformance.faults.processes import listing, outcome_of_process, settled_listing, start_process
from ort_qdq_plugin.cli.demo_model import Decoder

__all__ = ["TRIES", "UNUSED_UID", "Scene", "Skipped"]

UNUSED_UID = 54321
"""An ordinary user that no machine has."""
TRIES = 3
"""Loads of what depends on how much memory a process happens to have."""

# Shapes of the models: some 20 MB of weights and scales, or 2 MB.
_SHAPE, _QUICK_SHAPE = Decoder(2, 768, 3072, 16384), Decoder(1, 256, 1024, 4096)


class Skipped(Exception):
    """Why a row cannot be had here."""


class Scene:
    """A folder with the models, and what rows need again and again."""

    def __init__(self, folder: Path, quick: bool = False, kills: int = 100) -> None:
        self.folder = folder
        self.kills = kills
        self._quick = quick
        self._results: dict[str, str] = {}
        self.spill = folder / "spill"
        self.temporary = folder / "tmp"
        self.home = folder / "home"
        for made in (self.spill, self.temporary, self.home):
            made.mkdir()
            made.chmod(0o1777)

    @cached_property
    def loaders(self) -> tuple[str, ...]:
        """Our routes. By path needs a directory that is safe, which none seems where root is not mapped (unshare -r)."""
        folders = [self.spill, *self.spill.parents]
        return ("ours", "by path") if {folder.stat().st_uid for folder in folders} <= {0, os.geteuid()} else ("ours",)

    @property
    def contenders(self) -> list[tuple[Pair, str]]:
        """Models and routes: packed weights by each, weights in place by the first."""
        return [*((self.k_major, loader) for loader in self.loaders), (self.n_major, "ours")]

    def _pair(self, name: str, variant: str, **changes: Any) -> Pair:
        return write_pair(self.folder / name, variant, _QUICK_SHAPE if self._quick else _SHAPE, **changes)

    @cached_property
    def k_major(self) -> Pair:
        """Weights that have to be packed."""
        return self._pair("k", "uint4")

    @cached_property
    def k_major_other(self) -> Pair:
        """The same with other weights."""
        return self._pair("k-other", "uint4", seed=1)

    @cached_property
    def n_major(self) -> Pair:
        """Weights that are used where they are."""
        return self._pair("n", "uint4-nmajor")

    @cached_property
    def n_major_other(self) -> Pair:
        """The same with other weights."""
        return self._pair("n-other", "uint4-nmajor", seed=1)

    @cached_property
    def inline(self) -> Pair:
        """Weights inside the model's own file."""
        return self._pair("inline", "uint4", storage="inline")

    def results_of(self, *pairs: Pair) -> set[str]:
        """What stock ONNX Runtime makes of models, of the QDQ form and of the fused one."""
        for path in (str(path) for pair in pairs for path in (pair.qdq, pair.qop)):
            if path not in self._results:
                outcome = self.run(Job(path, "stock"))
                if not outcome.result:
                    raise RuntimeError(f"{path}: {outcome}")
                self._results[path] = outcome.result
        return {self._results[str(path)] for pair in pairs for path in (pair.qdq, pair.qop)}

    def run(self, job: Job, temporary: Path | None = None) -> Outcome:
        """A job in a fresh process."""
        return outcome_of_process(start_process(job, temporary or self.temporary, self.home))

    def compare(
        self,
        job: Job,
        results: set[str],
        *,
        temporary: Path | None = None,
        spill: Path | None = None,
        restore: Callable[[], None] | None = None,
        tries: int = 1,
        slack: Sequence[int] = (),
        alike: frozenset[str] = frozenset(),
    ) -> Verdict:
        """The job by us and by stock ONNX Runtime, judged; `restore` is called before each.

        `slack` is by how much more of what is limited we may need: stock may have failed with so much less.
        """
        verdict = Verdict("", "not run")
        stock_job = replace(job, loader="stock", again=False)
        for _ in range(tries):
            ours, left = self._watched_run(job, temporary, [spill or self.spill], restore)
            # Where we have a session, stock ONNX Runtime does not matter.
            stock = ours if ours.result else self._watched_run(stock_job, temporary, [], restore)[0]
            verdict = judge(ours, stock, results, left, alike)
            if not verdict.problem:
                return verdict
        for less in slack if not ours.result else ():
            stock = self._watched_run(replace(stock_job, value=job.value - less), temporary, [], restore)[0]
            with_less = judge(ours, stock, results, left, alike)
            if not with_less.problem:
                return replace(with_less, what=f"{with_less.what} with a little less")
        return verdict

    def _watched_run(
        self, job: Job, temporary: Path | None, folders: Sequence[Path], restore: Callable[[], None] | None
    ) -> tuple[Outcome, set[str]]:
        """The outcome of a job, and what is there afterwards that was not."""
        if restore is not None:
            restore()
        watched = [*folders, temporary or self.temporary, Path(job.model).parent]
        before = listing(watched)
        outcome = self.run(job, temporary)
        return outcome, settled_listing(watched, before)

    def job(self, pair: Pair | None = None, **changes: Any) -> Job:
        """A job for a model (packed weights unless told otherwise) with its spill file here."""
        return replace(Job(str((pair or self.k_major).qdq), spill_dir=str(self.spill)), **changes)

    def both_routes(self, spill: Path, **changes: Any) -> list[Verdict]:
        """A model whose weights are packed, with its spill file there, by each of our routes."""
        results = self.results_of(self.k_major)
        return [
            self.compare(self.job(spill_dir=str(spill), loader=loader, **changes), results, spill=spill)
            for loader in self.loaders
        ]
