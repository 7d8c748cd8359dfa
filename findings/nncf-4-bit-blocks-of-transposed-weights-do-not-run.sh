#!/usr/bin/env bash
# nncf 3.4.0: compressing an ONNX model to 4 bits breaks each Gemm with transB=1, which is every linear layer of torch.
#
# Along the inputs of a layer, a weight of shape [N, K] has scales of shape [N, K / group]: that needs DequantizeLinear with
# axis=1. nncf.compress_weights stores those scales and writes axis=0. Nothing says so before the first run: the call
# returns, onnx.checker accepts the model, and the session loads. The same layer as MatMul of a weight [K, N] is right. A
# table that Gather reads is [rows, K], too, and gets the axis 0 as well where all_layers has it compressed to 4 bits.
#
# Seen, for INT4_SYM and for INT4_ASYM, with onnxruntime 1.32.0:
#   MatMul [K, N]: axis 0 of scales [4, 64]: runs
#   Gemm [N, K]: axis 0 of scales [64, 4]: run fails
#   Gather [rows, K]: axis 0 of scales [64, 4]: run fails
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
K, N = 128, 64
# What it is -> the shape of the weight, the inputs of the operator, its attributes.
CASES = {
    "MatMul [K, N]": ([K, N], ["x", "w"], {}),
    "Gemm [N, K]": ([N, K], ["x", "w"], {"transB": 1}),
    "Gather [rows, K]": ([N, K], ["w", "x"], {}),
}


def network(case: str) -> onnx.ModelProto:
    shape, inputs, attributes = CASES[case]
    operator = case.split()[0]
    x = ([2], TensorProto.INT64) if operator == "Gather" else ([2, K], TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], name="node", **attributes)], "g",
        [helper.make_tensor_value_info("x", x[1], x[0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, K if operator == "Gather" else N])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


for mode in ("INT4_SYM", "INT4_ASYM"):
    how = {"mode": nncf.CompressWeightsMode[mode], "group_size": 32, "ratio": 1.0, "all_layers": True}
    for case in CASES:
        model = nncf.compress_weights(network(case), **how)
        onnx.checker.check_model(model)
        (node,) = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
        scales = next(list(tensor.dims) for tensor in model.graph.initializer if tensor.name == node.input[1])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        x = np.ones(2, np.int64) if case.startswith("Gather") else np.ones((2, K), np.float32)
        try:
            session.run(None, {"x": x})
            outcome = "runs"
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            outcome = "run fails"
        print(f"{case}: axis {axis} of scales {scales}: {outcome}")
PYTHON
"$work/venv/bin/python" "$work/compress.py" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
grep "axis 0 of" "$work/log" | tee "$work/seen" # without nncf's tables and progress bars
diff "$work/seen" - << 'SEEN'
MatMul [K, N]: axis 0 of scales [4, 64]: runs
Gemm [N, K]: axis 0 of scales [64, 4]: run fails
Gather [rows, K]: axis 0 of scales [64, 4]: run fails
MatMul [K, N]: axis 0 of scales [4, 64]: runs
Gemm [N, K]: axis 0 of scales [64, 4]: run fails
Gather [rows, K]: axis 0 of scales [64, 4]: run fails
SEEN
