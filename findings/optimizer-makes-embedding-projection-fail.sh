#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: a quantized embedding table behind a quantized MatMul fails if it has a scale for each row.
#
# The table is uint8 with a scale and a zero point for each row (a token's embedding); Gather looks up all three, then
# DequantizeLinear and MatMul with a dequantized int8 weight follow. The optimizer turns both DequantizeLinears and the
# MatMul into MatMulIntegerToFloat without a look at the activation's scales, and that kernel takes one scale only. The
# session loads; the first run fails. A scale for each column fails as well. One for the whole table is right, and
# without optimizations all three are.
#
# Seen:
#   one scale: right; not optimized: right
#   a scale for each column: Fail: input a zero point must be a scalar; not optimized: right
#   a scale for each row: Fail: input a zero point must be a scalar; not optimized: right
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
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS, K, N = 10, 32, 16
rng = np.random.default_rng(0)
table = rng.integers(0, 256, (ROWS, K), dtype=np.uint8)
weight = rng.integers(-127, 128, (K, N), dtype=np.int8)
tokens = np.array([1, 9, 4])


def network(scales: np.ndarray, zeros: np.ndarray) -> onnx.ModelProto:
    constants = {"t": table, "s": scales, "z": zeros, "w": weight, "w_s": np.float32(0.01), "w_z": np.int8(0)}
    nodes, how = [helper.make_node("Gather", ["t", "i"], ["q"])], {"axis": 1}
    parameters = ["s", "z"]
    if scales.ndim == 2:  # [ROWS, 1]: each row is a block of K values
        nodes += [helper.make_node("Gather", [name, "i"], [f"{name}_i"]) for name in parameters]
        parameters, how = ["s_i", "z_i"], {"axis": 1, "block_size": K}
    nodes += [
        helper.make_node("DequantizeLinear", ["q", *parameters], ["x"], **how),
        helper.make_node("DequantizeLinear", ["w", "w_s", "w_z"], ["w_d"]),
        helper.make_node("MatMul", ["x", "w_d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", N])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def outcome(model: onnx.ModelProto, level: str, expected: np.ndarray) -> str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        y = session.run(None, {"i": tokens})[0]
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        said = "input a zero point must be a scalar"
        return f"Fail: {said if said in str(error) else error}"
    return "right" if np.allclose(y, expected, rtol=1e-4, atol=1e-4) else "wrong"


found = []
for name, shape in (("one scale", ()), ("a scale for each column", (K,)), ("a scale for each row", (ROWS, 1))):
    scales = rng.uniform(0.01, 0.02, shape).astype(np.float32) if shape else np.float32(0.02)
    zeros = rng.integers(100, 150, shape).astype(np.uint8) if shape else np.uint8(128)
    embeddings = (table.astype(np.float32) - zeros) * scales
    model, expected = network(np.asarray(scales), np.asarray(zeros)), embeddings[tokens] @ (weight * np.float32(0.01))
    outcomes = [outcome(model, level, expected) for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL")]
    print(f"{name}: {outcomes[0]}; not optimized: {outcomes[1]}")
    found.append(outcomes)
failed = "Fail: input a zero point must be a scalar"
assert found == [["right", "right"], [failed, "right"], [failed, "right"]]
PYTHON
