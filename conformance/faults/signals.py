"""Signals while a model is loaded, at chosen moments and at random ones."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from conformance.faults.fault import Chapter
from conformance.faults.job import LOADED, Job, Outcome
from conformance.faults.judging import Verdict
from conformance.faults.processes import TIMEOUT, listing, outcome_from, outcome_of_process, settled_listing, start_process
from conformance.faults.scene import Scene, Skipped

__all__ = ["CHAPTER", "strike"]

CHAPTER = Chapter()


@CHAPTER.fault("SIGINT while packing", "from the progress callback, then a second load", "packing", quick=True)
def _interrupted_packing(scene: Scene) -> list[Verdict]:
    return [_interrupted(scene, scene.job(loader=loader, breaks="interrupt packing")) for loader in scene.loaders]


@CHAPTER.fault("SIGINT in initialization", "0 to 15 ms after it began, then a second load", "initialization", quick=False)
def _interrupted_initialization(scene: Scene) -> list[Verdict]:
    return [
        _interrupted(scene, scene.job(pair, loader=loader, breaks="interrupt initialization", value=value))
        for pair, loader in scene.contenders
        for value in (0, 2, 5, 10, 15)
    ]


def _interrupted(scene: Scene, job: Job) -> Verdict:
    """KeyboardInterrupt must come out, and the next load in the same process must be as good as any."""
    results = scene.results_of(scene.k_major, scene.n_major)
    watched = [scene.spill, scene.temporary, Path(job.model).parent]
    before = listing(watched)
    ours = scene.run(replace(job, again=True))
    left = settled_listing(watched, before)
    good = ours.error == "KeyboardInterrupt" and ours.again in results and not ours.warnings and not ours.left
    problem = "" if good else f"{ours}"
    return Verdict("KeyboardInterrupt, then a session", problem or (f"left: {left}" if left else ""), len(left))


@CHAPTER.fault("SIGTERM", "default action, from the progress callback", "packing", quick=True)
def _terminated(scene: Scene) -> list[Verdict]:
    verdicts = []
    for loader in scene.loaders:
        before = listing([scene.spill, scene.temporary])
        ours = scene.run(scene.job(loader=loader, breaks="terminate packing"))
        left = settled_listing([scene.spill, scene.temporary], before)
        problem = "" if ours.died == "killed by SIGTERM" and not left else f"{ours.short}, left {left}"
        verdicts.append(Verdict("ended by SIGTERM", problem, len(left)))
    return verdicts


def _send_during_load(scene: Scene, job: Job, number: int, after: float) -> tuple[Outcome, bool]:
    """Send a signal so many seconds after the load has begun; the outcome, and whether the load was still going on."""
    process = start_process(replace(job, wait=True), scene.temporary, scene.home)
    assert process.stdout is not None
    assert process.stdin is not None
    if process.stdout.readline().strip() != "ready":
        return outcome_of_process(process), False
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(after)
    process.send_signal(number)
    try:
        out, messages = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(died="hangs"), True
    lines = out.strip().splitlines()
    stages = [line for line in lines if not line.startswith("{")]
    return replace(outcome_from(process, out, messages), stage=stages[-1] if stages else "open"), LOADED not in stages


def _load_seconds(scene: Scene, job: Job) -> float:
    """How long the load takes in a process that has imported everything."""
    process = start_process(replace(job, wait=True), scene.temporary, scene.home)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    start = time.perf_counter()
    process.stdin.write("\n")
    process.stdin.flush()
    while process.stdout.readline().strip() not in (LOADED, ""):
        pass
    seconds = time.perf_counter() - start
    # Its outcome may have been read together with the line before, and is of no interest.
    process.communicate(timeout=TIMEOUT)
    return seconds


def strike(scene: Scene, job: Job, number: int, count: int) -> list[Verdict]:
    """Loads that meet the signal at moments spread over their whole length."""
    dice = random.Random(count)
    # A little more, as none takes exactly as long as another.
    seconds = 1.2 * median(_load_seconds(scene, job) for _ in range(3))
    verdicts = []
    watched = [scene.spill, scene.temporary, Path(job.model).parent]
    for strike in range(count):
        before = listing(watched)
        ours, during = _send_during_load(scene, job, number, (strike + dice.random()) / count * seconds)
        left = settled_listing(watched, before)
        expected = "killed by SIGKILL" if number == signal.SIGKILL else "KeyboardInterrupt"
        ended = not during or expected in (ours.died, ours.error)
        problem = "" if ended else f"{ours.short} {ours.messages[-300:]}"
        if left:
            problem = problem or f"left in stage {ours.stage}: {sorted(left)}"
            for path in left:
                os.unlink(path)
        verdicts.append(Verdict(f"in {ours.stage}" if during else "after the load", problem, len(left), ours.stage))
    return verdicts


@CHAPTER.fault("SIGINT at random moments", "Python's own handler", "all of them")
def _interrupts(scene: Scene) -> list[Verdict]:
    return [
        verdict
        for loader in scene.loaders
        for verdict in strike(scene, scene.job(loader=loader), signal.SIGINT, max(1, scene.kills // 5))
    ]


@CHAPTER.fault("kill -9, borrowed", "at random moments", "all of them")
def _kills_borrowed(scene: Scene) -> list[Verdict]:
    return strike(scene, scene.job(), signal.SIGKILL, scene.kills)


@CHAPTER.fault("kill -9, by path", "at random moments", "all of them")
def _kills_by_path(scene: Scene) -> list[Verdict]:
    if "by path" not in scene.loaders:
        raise Skipped("no directory is safe here")
    return strike(scene, scene.job(loader="by path"), signal.SIGKILL, scene.kills)
