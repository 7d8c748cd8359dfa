"""A session of this package against stock ONNX Runtime's, over the whole public surface of InferenceSession.

Every program of ``tests.surface`` is run on both sides, and must give, raise, warn, print and write the same.
"""

import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnxruntime import InferenceSession

from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.ort.keys import ACCURACY_KEY
from tests.support import CPU
from tests.surface import configuring, loading, running, telling
from tests.surface.differences import DIFFERENCES
from tests.surface.models import MODELS
from tests.surface.probes import PROBES, Probe, names_used, public_names
from tests.surface.sides import FOLDER_KEY, PARALLEL_KEY, WAYS, Program, Side, Way, assert_same, observed

# Importing them enters their programs into PROBES.
PROGRAMS = (configuring, loading, running, telling)
# What ONNX Runtime warns of where entries of the caller's options are changed during the call, and put back.
CHANGED_ENTRIES = [f"AddConfigEntry] Config with key [{key}]" for key in (ACCURACY_KEY, FOLDER_KEY, PARALLEL_KEY)]


def both(folder: Path, model: str, way: Way) -> tuple[Side, Side]:
    """Our side and the stock one."""
    return Side(folder / "ours", MODELS[model], way, True), Side(folder / "theirs", MODELS[model], way, False)


def cases() -> Iterator[object]:
    """Quick is the first model's first way, slow its last one and one of each other model, in turns, and all others long."""
    for entry in PROBES:
        for (number, model), way in itertools.product(enumerate(entry.models), entry.ways):
            turn = entry.ways[number % len(entry.ways) if number else -1]
            quick = not number and way == entry.ways[0]
            marks = [] if quick else [pytest.mark.slow] if way == turn else [pytest.mark.long]
            yield pytest.param(entry.program, model, way, id=f"{entry.program.__name__}-{model}-{way}", marks=marks)


@pytest.mark.parametrize(("program", "model", "way"), list(cases()))
def test_both_do_the_same(program: Program, model: str, way: Way, tmp_path: Path) -> None:
    ours, theirs = both(tmp_path, model, way)
    expected = observed(program, theirs)
    assert_same(observed(program, ours), expected, ours.model.tolerance)


@pytest.mark.parametrize(
    ("name", "model", "way"),
    [(name, model, way) for name, known in DIFFERENCES.items() for model in known.models for way in known.ways],
)
def test_a_known_difference_is_as_it_is_said_to_be(name: str, model: str, way: Way, tmp_path: Path) -> None:
    known = DIFFERENCES[name]
    ours, theirs = both(tmp_path, model, way)
    assert observed(known.program, theirs)["value"] == known.theirs
    assert observed(known.program, ours)["value"] == known.ours, known.reason


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_both_log_the_same(model: str, way: Way, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At ONNX Runtime's default severity."""

    def program(side: Side) -> None:
        session = side.create(side.options(log_severity_level=-1))
        session.run(None, side.fed())
        session.set_providers(CPU)

    def logged(side: Side) -> list[str]:
        capfd.readouterr()
        observed(program, side)
        return [line.partition("[W:")[2] or line for line in capfd.readouterr().err.splitlines()]

    ours, theirs = both(tmp_path, model, way)
    expected, seen = logged(theirs), logged(ours)
    if way == "by path":
        seen = [line for line in seen if not any(changed in line for changed in CHANGED_ENTRIES)]
    assert seen == expected


def test_create_session_takes_what_the_class_takes() -> None:
    ours, theirs = (inspect.signature(callable).parameters for callable in (create_session, InferenceSession))
    added = {name for name in ours if name not in theirs}
    assert added == {"options"}
    assert [(name, ours[name].kind, ours[name].default) for name in ours if name not in added] == [
        (name, theirs[name].kind, theirs[name].default) for name in theirs
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_our_side_is_ours(model: str, way: Way, tmp_path: Path) -> None:
    ours, theirs = both(tmp_path, model, way)

    def loaded(side: Side) -> object:
        report = report_of(side.create())
        return None if report is None else [report.route, len(report.fused)]

    assert observed(loaded, theirs)["value"] is None
    route = "by path" if way == "by path" and ours.model.route == "borrowed" else ours.model.route
    assert observed(loaded, ours)["value"] == [route, ours.model.fused]


def test_every_public_name_is_compared() -> None:
    compared, public = {name for entry in PROBES for name in entry.names}, public_names()
    assert not public - compared, "of a newer ONNX Runtime: no program is entered for them yet"
    assert not compared - public, "of an older ONNX Runtime: gone"


@pytest.mark.parametrize("entry", PROBES, ids=lambda entry: entry.program.__name__)
def test_a_program_uses_the_names_that_it_is_entered_under(entry: Probe) -> None:
    assert {name.rpartition(".")[2] for name in entry.names} <= names_used(entry.program)
