"""The table of choices: it passes where this package chooses well, and would tell if it did not."""

import sys

import pytest

from conformance.choices import cells, forms
from conformance.choices.__main__ import main
from ort_qdq_plugin.fusion import choice

pytestmark = pytest.mark.slow
SLOW_AS_STORED = "2 bits, level 4, blocks of 256, K-major, float, 256x256, rows 1"
"""Ten times as slow as the other forms."""


def told(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["choices", *arguments])
    return main()


def test_a_part_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Results and bytes. How fast they are is no matter of a test on a busy machine."""
    monkeypatch.setattr(cells, "_MORE_TRIES", 0)
    for level in (0, 4):
        assert told(monkeypatch, "--quick", "--only", f"[28] bits, level {level}, blocks of *6, ?-major*rows 1") == 0
    said = capsys.readouterr().out
    rows = [line.split(" | ") for line in said.splitlines() if " | " in line]
    assert {row[2] for row in rows} == {"4 bits, 16", "4 bits, 256", "8 bits, 16", "8 bits, 256", "stock"}
    assert "ERROR" not in said


def test_a_slow_form_misses_the_target(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(choice, "_RULES", ())
    assert told(monkeypatch, "--check", "--only", SLOW_AS_STORED) == 1
    assert "MISSED: worst / fastest" in capsys.readouterr().out


def test_a_wrong_result_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cells, "_MORE_TRIES", 0)
    monkeypatch.setitem(forms.LIMITS, ("float", 4), 1e-9)
    assert told(monkeypatch, "--only", SLOW_AS_STORED) == 1
    assert "this package has an error of" in capsys.readouterr().out
