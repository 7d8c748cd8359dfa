"""The models of the demo: layers as in a decoder's feed-forward part, with random 4-bit weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["BLOCK_SIZE", "PRODUCTS", "WEIGHT_BYTES", "write_model"]

# Each layer has two products with a gate between them, and adds its input to the result.
_WIDTH, _GATED, _LAYERS = 2048, 6144, 4
BLOCK_SIZE = 32
PRODUCTS = 2 * _LAYERS
WEIGHT_BYTES = _LAYERS * 3 * _WIDTH * _GATED // 2


def write_model(folder: Path, k_major: bool) -> Path:
    """Write a chain of QDQ products, its weights in an external data file, K-major or N-major.

    Args:
        folder: It is made.
        k_major: Whether weights are stored [K, N].

    Returns:
        The path of the model.
    """
    from onnx import TensorProto, helper

    folder.mkdir()
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    value = "x"
    with open(folder / "model.onnx.data", "wb") as data:

        def store(name: str, kind: int, shape: tuple[int, ...], content: np.ndarray) -> str:
            tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
            entries = {"location": Path(data.name).name, "offset": data.tell(), "length": content.nbytes}
            for key, entry in entries.items():
                tensor.external_data.add(key=key, value=str(entry))
            data.write(content.data)
            tensors.append(tensor)
            return name

        def product(name: str, left: str, k: int, n: int) -> str:
            weight, scales, zero_points = _numbers(k, n, len(tensors))
            blocks = (k // BLOCK_SIZE, n) if k_major else (n, k // BLOCK_SIZE)
            operands = [
                store(f"{name}.weight", TensorProto.UINT4, (k, n) if k_major else (n, k), weight),
                store(f"{name}.scale", TensorProto.FLOAT, blocks, scales),
                store(f"{name}.zero_point", TensorProto.UINT4, blocks, zero_points),
            ]
            right = f"{name}.dequantized"
            attributes: dict[str, Any] = {"axis": 0 if k_major else 1, "block_size": BLOCK_SIZE}
            nodes.append(helper.make_node("DequantizeLinear", operands, [right], f"{name}.dq", **attributes))
            if not k_major:
                nodes.append(helper.make_node("Transpose", [right], [f"{name}.transposed"], perm=[1, 0]))
                right = f"{name}.transposed"
            nodes.append(helper.make_node("MatMul", [left, right], [f"{name}.out"], name))
            return f"{name}.out"

        for layer in range(_LAYERS):
            name = f"layer{layer}"
            gate_up = product(f"{name}.gate_up", value, _WIDTH, 2 * _GATED)
            nodes.append(helper.make_node("Split", [gate_up], [f"{name}.gate", f"{name}.up"], axis=-1, num_outputs=2))
            nodes.append(helper.make_node("Sigmoid", [f"{name}.gate"], [f"{name}.open"]))
            nodes.append(helper.make_node("Mul", [f"{name}.up", f"{name}.open"], [f"{name}.gated"]))
            down = product(f"{name}.down", f"{name}.gated", _GATED, _WIDTH)
            nodes.append(helper.make_node("Add", [value, down], [f"{name}.y"]))
            value = f"{name}.y"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", _WIDTH]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "demo", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _numbers(k: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random packed weight, scales and packed zero points, such that results are about as large as inputs."""
    rng = np.random.default_rng(seed)
    blocks = k // BLOCK_SIZE * n
    scales = rng.random(blocks, np.float32)
    scales += np.float32(0.5)
    scales *= np.float32(1 / (6 * math.sqrt(k)))
    # Zero points near the middle, as quantizers give them: 6 to 9.
    zero_points = rng.integers(0, 256, blocks // 2, np.uint8) & np.uint8(0x33)
    zero_points += np.uint8(0x66)
    return rng.integers(0, 256, k * n // 2, np.uint8), scales, zero_points
