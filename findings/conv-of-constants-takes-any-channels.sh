#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: with all optimizations, a Conv whose weight is a constant runs with any number of channels.
#
# Its kernel refuses a weight whose channels are not those of the input ("Input channels C is not equal to kernel channels *
# group"). NchwcTransformer, which runs at ORT_ENABLE_ALL, the default, replaces the node by one that does not ask, and gives
# a result that means nothing. Weights that are dequantized on each run are not constants to it, and are refused at every
# level.
#
# Seen, a weight of 16 channels for an input of 8:
#   ORT_DISABLE_ALL: refused
#   ORT_ENABLE_EXTENDED: refused
#   ORT_ENABLE_ALL: a result
#
# Fails if any of this changes.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.0
cd "$work"
"$work/venv/bin/python" - << 'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 6, 6])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    [numpy_helper.from_array(np.ones((8, 16, 3, 3), np.float32), "w")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
seen = {}
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        session.run(None, {"x": np.ones((1, 8, 6, 6), np.float32)})
        seen[level] = "a result"
    except Exception as error:
        assert "kernel channels" in str(error), error
        seen[level] = "refused"
    print(f"{level}: {seen[level]}")
assert list(seen.values()) == ["refused", "refused", "a result"]
PYTHON
