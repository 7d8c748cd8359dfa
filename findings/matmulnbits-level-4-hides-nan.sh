#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: at accuracy_level 4 MatMulNBits turns a NaN of its activation into finite numbers.
#
# Level 4 rounds activations to int8 in blocks; the block that holds a NaN gets some finite scale. Level 4 is what ONNX
# Runtime's own fusion of DequantizeLinear -> MatMul sets on the CPU, so a QDQ model hides NaNs, too: with graph
# optimizations its output is finite, without them it is NaN. Whoever looks for a NaN in the outputs to find a broken
# layer, or an overflow further up, does not see it.
#
# Seen, the row of a NaN:
#   level 0: all NaN
#   level 4: all finite
#   QDQ model, optimized: all finite; not optimized: all NaN
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
x = np.ones((2, K), np.float32)
x[0, 3] = np.nan


def run(nodes: list, constants: list, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", N])],
        constants,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": x})[0]
    assert np.isfinite(y[1]).all()
    return y[0]


def fused(level: int) -> np.ndarray:
    packed = rng.integers(0, 256, (N, K // BLOCK, BLOCK // 2), dtype=np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft",
        K=K, N=N, bits=4, block_size=BLOCK, accuracy_level=level,
    )
    scales = np.ones(N * K // BLOCK, np.float32)
    return run([node], [numpy_helper.from_array(packed, "q"), numpy_helper.from_array(scales, "s")])


def qdq(level: str) -> np.ndarray:
    weight = helper.make_tensor("q", TensorProto.UINT4, [K, N], rng.integers(0, 256, K * N // 2, np.uint8).tobytes(), raw=True)
    zeros = helper.make_tensor("z", TensorProto.UINT4, [K // BLOCK, N], bytes([0x88] * (K // BLOCK * N // 2)), raw=True)
    scales = numpy_helper.from_array(np.ones((K // BLOCK, N), np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return run(nodes, [weight, scales, zeros], level)


rows = {
    "level 0": fused(0),
    "level 4": fused(4),
    "QDQ model, optimized": qdq("ORT_ENABLE_ALL"),
    "QDQ model, not optimized": qdq("ORT_DISABLE_ALL"),
}
for name, row in rows.items():
    print(f"{name}: {np.isnan(row).sum()} of {N} are NaN")
assert [int(np.isnan(row).sum()) for row in rows.values()] == [N, 0, 0, N]
PYTHON
