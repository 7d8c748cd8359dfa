"""Files of the model that somebody changes while it is loaded."""

import shutil
from functools import partial

from conformance.faults.job import Job, Verdict, judge
from conformance.faults.scene import Fault, PairName, Scene

__all__ = ["SOURCES"]

_CHANGES = {"replaced": True, "rewritten": True, "truncated": True, "emptied": False, "grown": False}
"""What is done to a file, and whether that is quick."""
_MOMENTS = ("before packing", "while packing", "before the session")
_DATA = "qdq.onnx.data"


def _changing(scene: Scene, kind: str, moment: str) -> list[Verdict]:
    """The external data changes, that which is packed and that which is used in place."""
    names: list[tuple[PairName, PairName]] = [("packed", "packed, other"), ("in place", "in place, other")]
    verdicts = []
    # Weights in place are not packed.
    for name, other_name in names[:1] if moment == "while packing" else names:
        pair, other = scene.pair(name), scene.pair(other_name)
        results = scene.results_of(name, other_name)
        for loader in scene.loaders:
            work = scene.folder / "changing"
            work.mkdir()
            for path in pair.qdq.parent.glob("qdq*"):
                shutil.copy(path, work)
            paths = (kind, moment, str(work / _DATA), str(other.qdq.with_name(_DATA)))
            job = scene.job(model=str(work / "qdq.onnx"), loader=loader, breaks="source", paths=paths)
            ours, left = scene.watch(job)
            # Stock meets the file as it is now.
            stock = ours if ours.result else scene.run(Job(job.model, "stock"))
            verdicts.append(judge(ours, stock, results, left))
            shutil.rmtree(work)
    return verdicts


SOURCES = tuple(
    Fault(
        f"source {kind} {moment}", "external data of the model", moment, partial(_changing, kind=kind, moment=moment), quick
    )
    for kind, quick in _CHANGES.items()
    for moment in _MOMENTS
)
