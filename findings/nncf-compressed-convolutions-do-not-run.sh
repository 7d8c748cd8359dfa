#!/usr/bin/env bash
# nncf 3.4.0: weight compression of an ONNX model with a Conv writes a model that onnxruntime loads and cannot run.
#
# nncf.compress_weights stores the scales of a Conv weight of shape [8, 4, 3, 3] as [8, 1, 1], and DequantizeLinear wants
# one dimension. Nothing says so before the first run: compress_weights returns, onnx.checker accepts the result with
# full_check, and the session loads. Graph optimizations make no difference. A MatMul compressed by the same call runs.
#
# Seen, for INT8_SYM and for INT8_ASYM, with onnxruntime 1.32.0:
#   MatMul: scale [8], checker accepts, session loads, runs
#   Conv: scale [8, 1, 1], checker accepts, session loads, run fails: scale must be 1D tensor with size 8
#
# Fails if any of this changes.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet nncf==3.4.0 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
export HOME="$work"
mkdir "$HOME/intel"
printf 0 > "$HOME/intel/openvino_telemetry" # nncf reports its use otherwise
cat > "$work/compress.py" << 'PYTHON'
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import nncf

logging.getLogger("nncf").setLevel(logging.ERROR)
rng = np.random.default_rng(0)
# The operator, and the shapes of its input, weight and output.
SHAPES = {"MatMul": ([2, 4], [4, 8], [2, 8]), "Conv": ([1, 4, 8, 8], [8, 4, 3, 3], [1, 8, 6, 6])}


def network(operator: str) -> onnx.ModelProto:
    x, w, y = SHAPES[operator]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], name="product")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(rng.standard_normal(w).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def outcome(model: onnx.ModelProto, operator: str, level: str) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        session.run(None, {"x": np.ones(SHAPES[operator][0], np.float32)})
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        said = "scale must be 1D tensor with size 8"
        return f"run fails: {said if said in str(error) else error}"
    return "runs"


for mode in ("INT8_SYM", "INT8_ASYM"):
    for operator in SHAPES:
        model = nncf.compress_weights(network(operator), mode=nncf.CompressWeightsMode[mode])
        onnx.checker.check_model(model, full_check=True)
        (node,) = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        scale = next(list(tensor.dims) for tensor in model.graph.initializer if tensor.name == node.input[1])
        outcomes = {outcome(model, operator, level) for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL")}
        print(f"{operator}: scale {scale}, checker accepts, session loads,", *outcomes)
PYTHON
"$work/venv/bin/python" "$work/compress.py" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
grep "checker accepts" "$work/log" | tee "$work/seen" # without nncf's tables and progress bars
diff "$work/seen" - << 'SEEN'
MatMul: scale [8], checker accepts, session loads, runs
Conv: scale [8, 1, 1], checker accepts, session loads, run fails: scale must be 1D tensor with size 8
MatMul: scale [8], checker accepts, session loads, runs
Conv: scale [8, 1, 1], checker accepts, session loads, run fails: scale must be 1D tensor with size 8
SEEN
