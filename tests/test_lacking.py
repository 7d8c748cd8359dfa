"""Tests of what a system lacks are skipped there, and no others."""

import os
import sys

import pytest

from tests.lacking import Lacking, lacking, lacking_in


class Refused(OSError):
    """An error of Windows."""

    def __init__(self, problem: int) -> None:
        super().__init__("refused")
        self.winerror = problem


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AttributeError("no fork", name="fork", obj=os), "this system has no os.fork"),
        (AttributeError("no such", name="other", obj=pytest), None),
        (ModuleNotFoundError("no fcntl", name="fcntl"), "this system has no module fcntl"),
        (ModuleNotFoundError("no onnx", name="onnx"), None),
        (FileNotFoundError(2, "no such file", "/proc/self/maps"), "this system has no /proc/self/maps"),
        (FileNotFoundError(2, "no such file", "model.onnx"), None),
        (Refused(1314), "this system, or this user on it, cannot have this: refused"),
        (Refused(5), None),
        (AssertionError("wrong"), None),
    ],
)
def test_what_an_error_comes_of(error: BaseException, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert lacking(error) is None, "which lacks none of it"
    monkeypatch.setattr(sys, "platform", "win32")
    assert lacking(error) == reason


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Traceback\nAttributeError: module 'os' has no attribute 'fork'\n", "this system has no os.fork"),
        ("ModuleNotFoundError: No module named 'resource'", "this system has no resource"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/proc/self/maps'", "this system has no /proc/self/maps"),
        ("AssertionError", None),
        ("", None),
    ],
)
def test_what_a_process_ended_with(messages: str, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert lacking_in(messages) == reason


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"has no fcntl\.flock"):
        Lacking("fcntl").flock  # noqa: B018
