"""The table of unmodified programs: what it installs, what it reads from the log and from standard error."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.programs import __main__ as programs
from conformance.programs.catalogue import PROGRAMS
from ort_qdq_plugin import Report, StockReason


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_pinned_and_gives_a_result(name: str) -> None:
    program = PROGRAMS[name]
    project, _, version = program.requirements[0].partition("==")
    assert all((project, version))
    assert "result" in compile(program.code, name, "exec").co_names


def test_there_are_twenty_programs() -> None:
    assert len({program.requirements[0] for program in PROGRAMS.values()}) >= 20


def test_sessions_are_told_by_their_reports() -> None:
    handed_over = Report("borrowed", unchanged=StockReason.NOT_QUANTIZED, packed_bytes=20_100_000)
    stock = Report("stock", StockReason.NOT_QUANTIZED)
    lines = [f"ort-qdq-plugin[17]: /a: b/{at}.onnx: {one.summary()}" for at, one in enumerate((handed_over, stock, stock))]
    assert programs._sessions("\n".join(["something else", *lines])) == ["20.1 MB handed over", "2 x stock"]


def started(*said: str) -> programs._Started:
    return programs._Started(1.0, 1.0, 1, None, set(said))


def test_lines_that_come_with_the_variable_are_found() -> None:
    own = "read # files"
    ours = "WARNING ort_qdq_plugin: something"
    assert programs._new_lines([started(own)], [started(own), started()], "") == []
    assert programs._new_lines([started(own)], [started(own, "new")], " here") == ["standard error here: new"]
    assert programs._new_lines([started(own, ours)], [started(own, ours)], "") == [f"standard error: {ours}"]


def test_a_run_says_what_came_out_in_full(tmp_path: Path) -> None:
    code = "import numpy\nresult = {'heard': sound(0.01), 'third': numpy.float32(1) / 3}\n"
    done = programs._started(Path(sys.executable), code, tmp_path, {}, *programs._strict())
    assert len(done.result["heard"]) == 160
    assert np.float32(done.result["third"]) == np.float32(1) / 3
    assert done.seconds > done.cpu / 16 > 0
    with pytest.raises(RuntimeError, match="no such thing"):
        programs._started(Path(sys.executable), "raise ValueError('no such thing')", tmp_path, {})


def test_a_warning_of_this_package_is_an_error() -> None:
    code = "import warnings; warnings.warn_explicit('w', UserWarning, 'f', 1, module='ort_qdq_plugin.load.unchanged')"
    command = [sys.executable, *programs._strict(), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "UserWarning: w" in done.stderr
