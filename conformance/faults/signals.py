"""Signals while a model is loaded, at chosen moments and at random ones."""

import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from conformance.faults.job import LOADED, Job, Outcome, Verdict
from conformance.faults.scene import Fault, PairName, Scene, Skipped

__all__ = ["SIGNALS", "strike"]


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
