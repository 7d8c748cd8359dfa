"""Networks from torch's dynamo exporter, their linear layers quantized N-major by a few lines of NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import real_support
from onnx import helper, numpy_helper
from real_support import Array, assert_all_fused, dequantized_weights, needs, stock_session, twin_session

from ort_qdq_plugin import Options, Reason, create_session, report_of

pytestmark = needs("torch", "onnxscript", "ml_dtypes")

BLOCK = 32
LINEAR_LAYERS = 3
RANDOM = np.random.default_rng(9)
INPUTS = {
    "rows": RANDOM.standard_normal((4, 96)).astype(np.float32),
    "sequences": RANDOM.standard_normal((2, 5, 96)).astype(np.float32),
}


def quantized_blocks(weight: Array, bits: int) -> tuple[Array, Array, Array]:
    """Float [N, K] -> elements [N, K], scales [N, K / BLOCK] and zero points [N, K / BLOCK]."""
    n, k = weight.shape
    blocks = weight.reshape(n, k // BLOCK, BLOCK)
    low, high = np.minimum(blocks.min(2), 0), np.maximum(blocks.max(2), 0)
    top = (1 << bits) - 1
    scales = ((high - low) / top).astype(np.float32)
    zeros = np.rint(-low / scales)
    elements = np.clip(np.rint(blocks / scales[:, :, None]) + zeros[:, :, None], 0, top)
    return elements.reshape(n, k), scales, zeros


def n_major(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Each Gemm(transB=1) and MatMul of a constant gets its weight [N, K] from a DequantizeLinear(axis=1)."""
    import ml_dtypes

    element_type: Any = ml_dtypes.uint4 if bits == 4 else np.uint8
    floats = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul") and node.input[1] in floats:
            name = node.input[1]
            weight = numpy_helper.to_array(floats[name])
            elements, scales, zeros = quantized_blocks(weight.T if node.op_type == "MatMul" else weight, bits)
            inputs = [f"{name}.{part}" for part in ("quantized", "scales", "zero_points")]
            arrays = (elements.astype(element_type), scales, zeros.astype(element_type))
            model.graph.initializer.extend(map(numpy_helper.from_array, arrays, inputs))
            node.input[1] = f"{name}.float"
            dequantize = ("DequantizeLinear", inputs, [node.input[1]], f"{node.name}.dequantize")
            nodes.append(helper.make_node(*dequantize, axis=1, block_size=BLOCK))
            if node.op_type == "MatMul":
                nodes.append(helper.make_node("Transpose", [node.input[1]], [f"{name}.transposed"], perm=[1, 0]))
                node.input[1] = f"{name}.transposed"
            model.graph.initializer.remove(floats[name])
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    next(opset for opset in model.opset_import if opset.domain == "").version = 21
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dynamo")
    real_support.run_script("dynamo_models.py", made)
    for name in INPUTS:
        for bits in (4, 8):
            model = n_major(onnx.load(made / f"{name}.onnx"), bits)
            onnx.save(model, made / f"{name}_{bits}.onnx", save_as_external_data=True, size_threshold=0)
    return made


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", INPUTS)
def test_fused_close_and_equal(name: str, bits: int, folder: Path) -> None:
    """Close to the unoptimized model at accuracy level 0, equal to the QOperator twin at level 4."""
    path = folder / f"{name}_{bits}.onnx"
    products = [weight.product.op_type for weight in dequantized_weights(onnx.load(path))]
    assert products == ["Gemm" if name == "rows" else "MatMul"] * LINEAR_LAYERS
    assert real_support.fused_by_stock(path, folder)["MatMulNBits"] == 0
    session, fused = create_session(path, options=Options(accuracy_level=0)), create_session(path)
    report = assert_all_fused(report_of(fused), onnx.load(path))
    assert {fusion.layout for fusion in report.fused} == {"N-major"}
    if bits == 4:
        assert_all_fused(report_of(session), onnx.load(path))
    else:
        left = report_of(session)
        assert left is not None
        assert {entry.reason for entry in left.unfused} == {Reason.SLOWER}
    # Where sequences are of any length, ONNX Runtime joins an Add with the Gelu behind it rather than with the product.
    twin = twin_session(onnx.load(path), adds=name == "rows")
    sessions = (session, stock_session(path, level="ORT_DISABLE_ALL"), fused, twin)
    close, unoptimized, ours, theirs = (one.run(None, {"x": INPUTS[name]})[0] for one in sessions)
    assert real_support.relative_error(close, unoptimized) <= 1e-5
    assert np.array_equal(ours, theirs)
