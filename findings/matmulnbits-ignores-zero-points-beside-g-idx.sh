#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: MatMulNBits with uint8 zero points AND a g_idx input computes as if it had no zero points.
#
# The schema of com.microsoft.MatMulNBits allows both optional inputs at once (GPTQ checkpoints have both). Expected: the
# product with (q - zero_point[g_idx]) * scale[g_idx]. Seen: every zero point counts as 8, the default, without an error or a
# warning. The same node without g_idx is right, with the trivial g_idx (k // block_size) it is not.
#
# Seen:
#   without g_idx: largest error 0.0000
#   with g_idx, zero points of 3: largest error 27.7, and equal to the node without zero points
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

K, N, BLOCK = 64, 8, 32
rng = np.random.default_rng(0)
quantized = rng.integers(0, 16, (N, K), dtype=np.uint8)
packed = (quantized[:, 0::2] | quantized[:, 1::2] << 4).reshape(N, K // BLOCK, BLOCK // 2)
constants = {
    "q": packed,
    "scales": np.ones(N * K // BLOCK, np.float32),
    "zero_points": np.full((N, K // BLOCK // 2), 0x33, np.uint8),  # 3 for both blocks
    "g_idx": (np.arange(K) // BLOCK).astype(np.int32),
}
x = rng.standard_normal((2, K)).astype(np.float32)


def product(*inputs: str) -> np.ndarray:
    node = helper.make_node(
        "MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft", K=K, N=N, bits=4, block_size=BLOCK
    )
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", N])],
        [numpy_helper.from_array(constants[name], name) for name in inputs if name],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


expected = x @ (quantized.astype(np.float32) - 3).T
without, beside = product("q", "scales", "zero_points"), product("q", "scales", "zero_points", "g_idx")
print(f"without g_idx: largest error {np.abs(without - expected).max():.4f}")
print(f"with g_idx, zero points of 3: largest error {np.abs(beside - expected).max():.1f}")
assert np.abs(without - expected).max() < 1e-3
assert np.abs(beside - expected).max() > 10
assert np.array_equal(beside, product("q", "scales"))
PYTHON
