"""Real faults, each in a fresh process: the rows of the fault table that are a matter of seconds, and some kills."""

import signal
from collections.abc import Iterator

import pytest

from conformance.faults.__main__ import FAULTS
from conformance.faults.job import Outcome, judge
from conformance.faults.meanwhile import strike
from conformance.faults.scene import Fault, Scene, Skipped

# Of the rows that are a matter of seconds, one of each kind in the quick suite.
QUICKEST = {"ENOSPC later", "ENOSPC when writing", "SIGTERM", "directory is a file", "source rewritten while packing"}
# What happens to the source between packing and the session is as what happens before packing, and takes twice as long.
LONG = {f"source {what} before the session" for what in ("replaced", "rewritten", "truncated")}


def marks(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in QUICKEST else [pytest.mark.long] if name in LONG else [pytest.mark.slow]


QUICK = [pytest.param(fault, id=fault.name.replace(" ", "-"), marks=marks(fault.name)) for fault in FAULTS if fault.quick]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Small models, in a folder that other users may enter."""
    folder = tmp_path_factory.mktemp("faults").resolve()
    yield Scene(folder, quick=True)
    assert {path.name for path in (folder / "spill").iterdir()} == set()


@pytest.mark.parametrize("fault", QUICK)
def test_a_fault_ends_as_with_stock_or_in_a_session(scene: Scene, fault: Fault) -> None:
    try:
        verdicts = fault.run(scene)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert verdicts
    assert not [verdict.problem for verdict in verdicts if verdict.problem]


@pytest.mark.parametrize(
    "loader", [pytest.param("ours", marks=pytest.mark.slow), pytest.param("by path", marks=pytest.mark.long)]
)
def test_kills_at_any_moment_leave_nothing(scene: Scene, loader: str) -> None:
    if loader not in scene.loaders:
        pytest.skip("no directory is safe here")
    verdicts = strike(scene, scene.job(loader=loader), signal.SIGKILL, 5)
    assert [verdict.problem for verdict in verdicts] == [""] * 5


SESSION = Outcome(result="right", route="borrowed")


@pytest.mark.parametrize(
    ("ours", "stock", "problem"),
    [
        (SESSION, SESSION, ""),
        (SESSION, Outcome(error="Fail"), ""),
        (Outcome(result="other", route="borrowed"), SESSION, "wrong result"),
        (Outcome(error="Fail"), Outcome(error="Fail"), ""),
        (Outcome(error="OSError"), Outcome(error="Fail"), "OSError"),
        (Outcome(error="Fail"), SESSION, "Fail"),
        (Outcome(died="killed by SIGBUS"), SESSION, "SIGBUS"),
        (Outcome(died="killed by SIGBUS"), Outcome(died="killed by SIGBUS"), ""),
        (Outcome(died="hangs"), Outcome(error="Fail"), "hangs"),
        (Outcome(result="right", warnings=("one",)), SESSION, ""),
        (Outcome(result="right", warnings=("one", "two")), SESSION, "2 warnings"),
        (Outcome(result="right", messages="Traceback (most recent call last):"), SESSION, "traceback"),
        (Outcome(result="right", left=("file",)), SESSION, "left behind"),
        (Outcome(result="right", missed=True), SESSION, "never came"),
    ],
)
def test_what_is_judged_a_problem(ours: Outcome, stock: Outcome, problem: str) -> None:
    found = judge(ours, stock, {"right"}, set()).problem
    assert problem in found
    assert bool(found) == bool(problem)


def test_what_is_left_behind_is_a_problem() -> None:
    verdict = judge(SESSION, SESSION, {"right"}, {"/somewhere/ort-qdq-1.spill"})
    assert ("ort-qdq-1.spill" in verdict.problem, verdict.left) == (True, 1)


def test_every_fault_has_a_name_of_its_own() -> None:
    names = {fault.name for fault in FAULTS}
    assert len(names) == len(FAULTS)
    assert names >= QUICKEST | LONG
