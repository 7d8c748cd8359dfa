"""The table of wrong uses: each is told what is wrong and what to do."""

from pathlib import Path

import pytest

from conformance.wrong_uses import api, commands, models, variables
from conformance.wrong_uses.__main__ import USES
from conformance.wrong_uses.use import Use, raised, tried, warned
from ort_qdq_plugin import log


@pytest.mark.parametrize("what", USES)
def test_a_wrong_use_is_told(what: str, tmp_path: Path) -> None:
    message, problem = tried(USES[what], tmp_path)
    assert not problem, message


def test_each_is_there_once_and_has_to_name_something() -> None:
    assert len(USES) == sum(len(module.USES) for module in (api, models, variables, commands))
    assert all(len(use.names) >= 2 for use in USES.values())
    assert len(api.USES) + len(variables.USES) >= 40
    assert len(models.USES) >= 12
    assert len(commands.USES) >= 25


def fail() -> None:
    raise KeyError("x")


def warn_twice() -> None:
    log.warning("x")
    log.warning("y")


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        (Use("taken", lambda folder: raised(lambda: None), ("x",)), "AssertionError: it is taken"),
        (Use("silent", lambda folder: warned(lambda: None), ("x",)), "it is told nothing"),
        (Use("another error", lambda folder: raised(fail), ("x",)), "KeyError: 'x'"),
        (
            Use("twice", lambda folder: warned(warn_twice), ("x",)),
            "AssertionError: 2 warn",
        ),
        (Use("a traceback", lambda folder: "Traceback (most recent call last):\nx", ("x",)), "it is told a traceback"),
        (Use("a riddle", lambda folder: "it is wrong", ("wrong", "x", "y")), "it is not told of x, y"),
    ],
    ids=lambda value: value.what if isinstance(value, Use) else "",
)
def test_what_is_told_badly_is_found(use: Use, problem: str, tmp_path: Path) -> None:
    assert tried(use, tmp_path)[1].startswith(problem)
