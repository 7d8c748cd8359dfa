"""Which files a model can have opened: those that stock ONNX Runtime opens, and no other."""

from __future__ import annotations

import os

import pytest

from conformance.fuzz.surroundings import beside_a_model
from tests.support import external_tensor, linear, python
from tests.withstands.hostile import SMALL

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures memory as Linux counts it")

OPENED = """
import os, sys
model, stage = sys.argv[1:]
sys.stderr = open(os.devnull, "w")
from ort_qdq_plugin import ModelError, create_session, inspect
import onnxruntime
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.fsdecode(arguments[0]))
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for _ in range(2):  # what is imported at the first time is opened then
    try:
        inspect(model) if stage == "inspect" else create_session(model, options, providers=["CPUExecutionProvider"])
    except Exception:
        pass
    if not opened:
        sys.addaudithook(hook)
        opened.append("first")
print(*opened[1:], sep="\\n")
"""


@pytest.mark.parametrize("stage", ["inspect", "load"])
@pytest.mark.parametrize(
    "location",
    ["/dev/zero", "/proc/self/mem", "../outside.data", "leaving.data", "zero", "fifo", "sub", ".", "", "x" * 300, "missing",
     "a\0b", "ort-qdq-plugin-0000000000000000/model"],
)  # fmt: skip
def test_what_stock_refuses_is_not_opened(location: str, stage: str) -> None:
    with beside_a_model() as folder:
        model = linear(SMALL)
        for tensor in model.graph.initializer:
            external_tensor(model, tensor.name, location=location)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        done = python(OPENED, path, stage)
    assert done.returncode == 0
    assert set(done.stdout.split()) <= {str(path)}


def test_what_stock_accepts_is_opened() -> None:
    """The other test sees what is opened at all."""
    with beside_a_model() as folder:
        model = linear(SMALL)
        external_tensor(model, "w", location="link.data")
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        done = python(OPENED, path, "inspect")
    assert done.stdout.split() == [str(path), str(folder / "model.data")]
