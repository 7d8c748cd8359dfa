"""What happens while a model is loaded: signals, and files of the model that somebody changes."""

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from conformance.faults.job import LOADED, Job, Outcome, Verdict, judge
from conformance.faults.scene import Fault, PairName, Scene, Skipped

__all__ = ["SIGNALS", "SOURCES", "strike"]


def _interrupted(scene: Scene, name: PairName = "packed", **changes: Any) -> Verdict:
    """KeyboardInterrupt must come out, and the next load in the same process must be as good as any."""
    results = scene.results_of("packed", "in place")
    ours, left = scene.watch(scene.job(name, again=True, **changes))
    good = ours.error == "KeyboardInterrupt" and ours.again in results and not ours.warnings and not ours.left
    return Verdict.of("KeyboardInterrupt, then a session", "" if good else f"{ours}", left)


def _interrupted_initialization(scene: Scene) -> list[Verdict]:
    return [
        _interrupted(scene, name, loader=loader, breaks="interrupt initialization", value=value)
        for name, loader in scene.contenders
        for value in (0, 2, 5, 10, 15)
    ]


def _terminated(scene: Scene) -> list[Verdict]:
    verdicts = []
    for loader in scene.loaders:
        ours, left = scene.watch(scene.job(loader=loader, breaks="terminate packing"))
        verdicts.append(Verdict.of("ended by SIGTERM", "" if ours.died == "killed by SIGTERM" else ours.short, left))
    return verdicts


def _send_during_load(scene: Scene, job: Job, number: int, after: float) -> Outcome:
    """Send a signal that many seconds after the load has begun."""
    process = scene.start(replace(job, wait=True))
    if process.begin():
        time.sleep(after)
        process.send_signal(number)
    return process.outcome()


def strike(scene: Scene, job: Job, number: int, count: int) -> list[Verdict]:
    """Loads that meet the signal at moments spread over their whole length."""
    dice = random.Random(count)
    # A little more, as none takes exactly as long as another.
    seconds = 1.2 * median(scene.run(job).seconds for _ in range(3))
    expected = "killed by SIGKILL" if number == signal.SIGKILL else "KeyboardInterrupt"
    verdicts = []
    for nth in range(count):
        after = (nth + dice.random()) / count * seconds
        ours, left = scene.watch(job, partial(_send_during_load, scene, number=number, after=after))
        during = ours.stage != LOADED
        problem = f"{ours.short} {ours.messages[-300:]}" if during and expected not in (ours.died, ours.error) else ""
        verdicts.append(Verdict.of(f"in {ours.stage}" if during else "after the load", problem, left))
        for path in left:
            os.unlink(path)
    return verdicts


def _interrupts(scene: Scene) -> list[Verdict]:
    count = max(1, scene.kills // 5)
    return [verdict for loader in scene.loaders for verdict in strike(scene, scene.job(loader=loader), signal.SIGINT, count)]


def _kills(scene: Scene, loader: str) -> list[Verdict]:
    if loader not in scene.loaders:
        raise Skipped("no directory is safe here")
    return strike(scene, scene.job(loader=loader), signal.SIGKILL, scene.kills)


SIGNALS = (
    Fault("SIGINT while packing", "from the progress callback, then a second load", "packing",
          lambda scene: [_interrupted(scene, loader=loader, breaks="interrupt packing") for loader in scene.loaders],
          quick=True),
    Fault("SIGINT in initialization", "0 to 15 ms after it began, then a second load", "initialization",
          _interrupted_initialization),
    Fault("SIGTERM", "default action, from the progress callback", "packing", _terminated, quick=True),
    Fault("SIGINT at random moments", "Python's own handler", "all of them", _interrupts),
    Fault("kill -9, borrowed", "at random moments", "all of them", partial(_kills, loader="ours")),
    Fault("kill -9, by path", "at random moments", "all of them", partial(_kills, loader="by path")),
)  # fmt: skip

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
