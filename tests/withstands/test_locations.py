"""Which files a model can have opened: those that stock ONNX Runtime opens, and no other."""

import json

import pytest

from conformance.fuzz.mutate import beside_a_model
from tests.support import external_tensor, linear, python
from tests.withstands.hostile import SMALL

LOCATIONS = [
    "/dev/zero", "/proc/self/mem", "../outside.data", "leaving.data", "zero", "fifo", "sub", ".", "", "x" * 300, "missing",
    "a\0b", "ort-qdq-plugin-0000000000000000/model",
]  # fmt: skip
# What stock accepts: it shows that the others are seen when they are opened.
ACCEPTED = "link.data"

OPENED = """
import json, os, sys
stage, *models = sys.argv[1:]
sys.stderr = open(os.devnull, "w")
from ort_qdq_plugin import ModelError, create_session, inspect
import onnxruntime
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.fsdecode(arguments[0]))
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for turn in range(2):  # what is imported at the first time is opened then
    for model in models:
        opened.clear()
        try:
            inspect(model) if stage == "inspect" else create_session(model, options, providers=["CPUExecutionProvider"])
        except Exception:
            pass
        if turn:
            print(json.dumps(opened))
    sys.addaudithook(hook)
"""


@pytest.mark.parametrize("stage", ["inspect", "load"])
def test_what_stock_refuses_is_not_opened(stage: str) -> None:
    with beside_a_model() as folder:
        paths = [folder / f"{number}.onnx" for number in range(len(LOCATIONS) + 1)]
        for path, location in zip(paths, [*LOCATIONS, ACCEPTED], strict=True):
            model = linear(SMALL)
            for tensor in model.graph.initializer[: 1 if location == ACCEPTED else None]:
                external_tensor(model, tensor.name, location=location)
            path.write_bytes(model.SerializeToString())
        done = python(OPENED, stage, *paths)
    assert done.returncode == 0
    *opened, accepted = map(json.loads, done.stdout.splitlines())
    for path, location, seen in zip(paths, LOCATIONS, opened, strict=False):
        assert set(seen) <= {str(path)}, location
    assert len(opened) == len(LOCATIONS)
    assert set(accepted) == {str(paths[-1]), str(folder / "model.data")}
