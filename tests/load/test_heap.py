"""What a load of a model that is handed over unchanged leaves in the C library's heap."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.load import first_look, unchanged
from ort_qdq_plugin.load import open as opening
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.system.platform import host
from tests.support import IN_PLACE, made_report, python

pytestmark = IN_PLACE


def convolutions(folder: Path, count: int, channels: int) -> str:
    """The path of a model with as many of them."""
    shape, names = (channels, channels, 3, 3), [f"w{at}" for at in range(count)]
    kernels = [numpy_helper.from_array(np.full(shape, 1 / channels, np.float32), name) for name in names]
    nodes = [helper.make_node("Conv", [f"x{at}", f"w{at}"], [f"x{at + 1}"], pads=[1] * 4) for at in range(count)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8]) for name in ("x0", f"x{count}")]
    graph = helper.make_graph(nodes, "convolutions", ends[:1], ends[1:], kernels)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return str(folder / "model.onnx")


# MB in RAM, in use in the heap, and free in it, before and after.
@pytest.mark.parametrize(
    ("before", "after", "trims"),
    [
        pytest.param((20, 10, 5), (100, 45, 50), True, id="most of it"),
        pytest.param((70, 10, 50), (90, 28, 52), False, id="little beside what was free"),
        pytest.param((70, 10, 50), (70, 40, 20), False, id="less than was free"),
        pytest.param((500, 10, 90), (560, 50, 110), True, id="not most of it, but much"),
        pytest.param((94, 78, 67), (234, 150, 129), True, id="what was free is not in RAM"),
        pytest.param((94, 78, 67), (100, 83, 62), False, id="nor is it afterwards"),
        pytest.param((0, 10, 50), (0, 40, 20), True, id="the system does not tell"),
        pytest.param((20, 0, 0), (20, 0, 0), True, id="the C library does not tell"),
    ],
)
def test_gives_back_what_it_has_left_in_the_heap(
    before: tuple[int, ...], after: tuple[int, ...], trims: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the program had free before, which it uses again."""
    sizes = [before, after]
    trimmed = list[None]()
    monkeypatch.setattr(host, "anonymous_bytes", lambda: sizes[0][0] << 20)
    monkeypatch.setattr(host, "heap_bytes", lambda: sizes[0][1] << 20)
    monkeypatch.setattr(host, "free_heap_bytes", lambda: sizes[0][2] << 20)
    monkeypatch.setattr(host, "trim_heap", lambda: trimmed.append(None))
    create_stock = hook.create_stock

    def create(*call: Any) -> None:
        create_stock(*call)
        del sizes[0]

    monkeypatch.setattr(hook, "create_stock", create)
    for module in (first_look, opening, unchanged):
        monkeypatch.setattr(module, "UNCHANGED_BYTES", 1 << 14)
    session = create_session(convolutions(tmp_path, 1, 32), options=Options(strict=True))
    assert (made_report(session).unchanged is not None, bool(trimmed)) == (True, trims)


@pytest.mark.needs("a C library")
def test_a_later_load_leaves_no_more_in_the_heap_than_the_first(tmp_path: Path) -> None:
    """What was given back after the first load is still free in the heap by the C library's count."""
    code = """
import sys
from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.system.platform import host
sessions = [create_session(sys.argv[1], providers=["CPUExecutionProvider"]) for _ in range(3)]
assert report_of(sessions[0]).unchanged is not None
before = host.anonymous_bytes()
host.trim_heap()
print(before - host.anonymous_bytes())
"""
    done = python(code, convolutions(tmp_path, 10, 256))
    assert int(done.stdout or 1 << 40) < 6_000_000, done.stderr
