#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: GatherBlockQuantized gives a row of zeros for an index that its table does not have.
#
# Gather raises INVALID_ARGUMENT ("indices element out of data bounds"), so does Gather of the dequantized table. With the
# fused operator, which model builders write for quantized embeddings, a token that is out of the vocabulary (a tokenizer of
# another model) goes on silently with an embedding of zeros.
#
# Seen, for a table of 10 rows:
#   Gather: InvalidArgument
#   GatherBlockQuantized: row 10 is all 0.0, row -11 as well; row -1 is the last one, as ONNX wants it
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

ROWS, WIDTH = 10, 32
rng = np.random.default_rng(0)
table = rng.integers(0, 256, (ROWS, WIDTH // 2), dtype=np.uint8)
constants = [numpy_helper.from_array(table, "t"), numpy_helper.from_array(np.ones((ROWS, 1), np.float32), "s")]
fused = helper.make_node(
    "GatherBlockQuantized", ["t", "i", "s"], ["y"], domain="com.microsoft",
    gather_axis=0, quantize_axis=1, block_size=32, bits=4,
)
floats = [numpy_helper.from_array(rng.standard_normal((ROWS, WIDTH)).astype(np.float32), "t")]


def row(node: object, initializers: list, index: int) -> np.ndarray:
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"i": np.array([index], np.int64)})[0][0]


try:
    row(helper.make_node("Gather", ["t", "i"], ["y"]), floats, ROWS)
except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument as error:
    print("Gather: InvalidArgument:", "out of data bounds" in str(error))
else:
    raise SystemExit("Gather takes the index")
found = {index: row(fused, constants, index) for index in (ROWS, -ROWS - 1, -1, ROWS - 1)}
print("GatherBlockQuantized:", {index: "zeros" if not y.any() else "a row" for index, y in found.items()})
assert not found[ROWS].any() and not found[-ROWS - 1].any()
assert np.array_equal(found[-1], found[ROWS - 1]) and found[-1].any()
PYTHON
