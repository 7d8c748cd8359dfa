"""inspect says what create_session would do, and reads no weight for it."""

from pathlib import Path
from unittest.mock import Mock

import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session, inspect
from tests.support import CPU, huge, linear, made_report, mixed, python, save, stack

SPARSE = """
import re, resource, sys
from pathlib import Path
from ort_qdq_plugin import inspect
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
report = inspect(sys.argv[1])
assert len(report.fused) == 1, report
assert report.packed_bytes > 10 << 30, report
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_inspect_reads_no_weight(tmp_path: Path) -> None:
    stored = huge(tmp_path)
    done = python(SPARSE, stored)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000
    assert (tmp_path / "huge.data").stat().st_blocks == 0
    assert inspect(stored).fused[0].k == 1 << 18


def test_inspect_says_the_same(tmp_path: Path, n_major: bool) -> None:
    stored = save(stack(3, 128, n_major=n_major), tmp_path, "external")
    made, seen = made_report(create_session(stored)), inspect(stored)
    assert (seen.fused, seen.unfused) == (made.fused, made.unfused)
    assert (seen.packed_bytes, seen.borrowed_bytes) == (made.packed_bytes, made.borrowed_bytes)
    assert (seen.route, seen.stock_reason) == ("inspect", None)
    assert "pack" not in seen.seconds


def test_inspect_takes_options() -> None:
    stored = save(linear(Weight(block=0, k=512)), Path(), "bytes")
    assert inspect(stored, options=Options(block_size=128)).fused[0].block_size == 128


def test_a_session_has_the_cpu_by_default_whatever_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("providers", "refusal"):
        name = f"ort_qdq_plugin.ort.{module}.available_providers"
        monkeypatch.setattr(name, lambda: ("TensorrtExecutionProvider", "a plugin's", *CPU))
    seen, made = inspect(mixed()), made_report(create_session(mixed()))
    assert len(seen.fused) == len(made.fused) == 1
    assert seen.stock_reason is made.stock_reason is None


def test_inspect_makes_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = Mock(side_effect=AssertionError("a session was made"))
    monkeypatch.setattr(ort.InferenceSession, "__init__", refuse)
    assert len(inspect(mixed()).fused) == 1
    monkeypatch.setattr(ort.capi._pybind_state, "InferenceSession", refuse)
    assert len(inspect(mixed(), check=False).fused) == 1
