#!/usr/bin/env bash
# nvidia-modelopt 0.47.0: a 4-bit ONNX model of torch's linear layers does not run, or has its blocks the wrong way round.
#
# A linear layer is a Gemm of a weight [N, K] with transB=1. quantize(quantize_mode="int4") by awq_clip (its default method)
# or awq_lite makes scales [N, K / block] for it, which need DequantizeLinear with axis=1, and writes axis=0: that does
# not run. rtn_dq makes blocks along N, across the outputs: that runs, but is not what was asked for, and no fused operator
# takes it. rtn writes QuantizeLinear and DequantizeLinear without axis and block_size, which do not run for a MatMul either.
# Nothing says so: quantize returns, and onnx.checker accepts the models.
#
# Seen, with onnxruntime-gpu 1.24.4, which it asks for, on the CPU (onnxruntime 1.32.0 says the same):
#   MatMul [128, 64]: awq_clip [4, 64] runs; awq_lite [4, 64] runs; rtn_dq [4, 64] runs; rtn [4, 64] fails
#   Gemm [64, 128]: awq_clip [64, 4] fails; awq_lite [64, 4] fails; rtn_dq [2, 128] runs; rtn [2, 128] fails
#
# Installs torch: a few GB where pip takes its build for CUDA. Fails if any of this changes.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet 'nvidia-modelopt[onnx]==0.47.0' onnxruntime-gpu==1.24.4 onnx==1.21.0 numpy==2.4.6
cd "$work"
cat > "$work/quantize.py" << 'PYTHON'
import numpy as np
import onnx
import onnxruntime
from modelopt.onnx.quantization import quantize
from onnx import TensorProto, helper, numpy_helper

K, N = 128, 64
HOW = {"quantize_mode": "int4", "block_size": 32, "calibration_eps": ["cpu"], "high_precision_dtype": "fp32"}
x = np.ones((4, K), np.float32)
rng = np.random.default_rng(0)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for operator, shape, attributes in (("MatMul", [K, N], {}), ("Gemm", [N, K], {"transB": 1})):
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], name="node", **attributes)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, N])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "model.onnx")
    outcomes = []
    for method in ("awq_clip", "awq_lite", "rtn_dq", "rtn"):
        quantize("model.onnx", calibration_method=method, calibration_data={"x": x}, output_path="quantized.onnx", **HOW)
        model = onnx.load("quantized.onnx")
        onnx.checker.check_model(model)
        (node,) = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
        scales = next(list(tensor.dims) for tensor in model.graph.initializer if tensor.name == node.input[1])
        try:
            session = onnxruntime.InferenceSession("quantized.onnx", options, providers=["CPUExecutionProvider"])
            session.run(None, {"x": x})
            outcomes.append(f"{method} {scales} runs")
        except Exception:  # of two types: Fail, RuntimeException
            outcomes.append(f"{method} {scales} fails")
    print(f"seen: {operator} {shape}:", "; ".join(outcomes))
PYTHON
"$work/venv/bin/python" "$work/quantize.py" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
sed -n 's/^seen: //p' "$work/log" | tee "$work/seen"
diff "$work/seen" - << 'SEEN'
MatMul [128, 64]: awq_clip [4, 64] runs; awq_lite [4, 64] runs; rtn_dq [4, 64] runs; rtn [4, 64] fails
Gemm [64, 128]: awq_clip [64, 4] fails; awq_lite [64, 4] fails; rtn_dq [2, 128] runs; rtn [2, 128] fails
SEEN
