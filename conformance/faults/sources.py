"""Files of the model that somebody changes while it is loaded."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.big_models import Pair
from conformance.faults.breaks import CHANGES, MOMENTS, QUICK_CHANGES
from conformance.faults.fault import Chapter
from conformance.faults.job import Job
from conformance.faults.judging import Verdict, judge
from conformance.faults.processes import listing, settled_listing
from conformance.faults.scene import Scene

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


def _changing(scene: Scene, kind: str, moment: str) -> list[Verdict]:
    """Whose content changes: external data that is packed, data that is used in place, and the model's own file."""
    verdicts = []
    cases = [(scene.k_major, scene.k_major_other, "qdq.onnx.data"), (scene.n_major, scene.n_major_other, "qdq.onnx.data")]
    for pair, other, victim in cases:
        if moment == "while packing" and pair is scene.n_major:
            continue
        results = scene.results_of(pair, other)
        for loader in scene.loaders:
            work = scene.folder / "changing"
            restore = partial(_fresh_copy, pair, work)
            paths = (kind, moment, str(work / victim), str(other.qdq.with_name(victim)))
            job = scene.job(model=str(work / "qdq.onnx"), loader=loader, breaks="source", paths=paths)
            before = listing([scene.spill, scene.temporary])
            restore()
            ours = scene.run(job)
            left = settled_listing([scene.spill, scene.temporary], before)
            # Stock meets the file as it is now.
            stock = ours if ours.result else scene.run(Job(job.model, "stock"))
            verdicts.append(judge(ours, stock, results, left))
            shutil.rmtree(work)
    return verdicts


def _fresh_copy(pair: Pair, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in pair.qdq.parent.glob("qdq*"):
        shutil.copy(path, folder)


for _kind in CHANGES:
    for _moment in MOMENTS:
        _run = partial(_changing, kind=_kind, moment=_moment)
        _name = f"source {_kind} {_moment}"
        CHAPTER.fault(_name, "external data of the model", _moment, quick=_kind in QUICK_CHANGES)(_run)
