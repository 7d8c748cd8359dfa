"""Models to show things with: a decoder's products, with random 4-bit weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

__all__ = ["BLOCK_SIZE", "PHI_3_MINI", "SMALL", "Decoder", "write_model"]

BLOCK_SIZE = 32
_SCALE_BYTES = 4


class Decoder(NamedTuple):
    """How large a decoder is."""

    # Each has four products: of queries, keys and values, of what the attention gives, of gates, and of what these let
    # through.
    layers: int
    width: int  # of what goes from layer to layer
    gated: int  # of the part with gates
    vocabulary: int  # columns of the last product, after all layers

    @property
    def products(self) -> Iterator[tuple[str, int, int]]:
        """Name, K and N of each product."""
        for layer in range(self.layers):
            yield f"layer{layer}.qkv", self.width, 3 * self.width
            yield f"layer{layer}.o", self.width, self.width
            yield f"layer{layer}.gate_up", self.width, 2 * self.gated
            yield f"layer{layer}.down", self.gated, self.width
        yield "head", self.width, self.vocabulary

    @property
    def nbytes(self) -> int:
        """Of all weights, scales and zero points."""
        values = sum(k * n for _, k, n in self.products)
        return values // 2 + values // BLOCK_SIZE * _SCALE_BYTES + values // BLOCK_SIZE // 2


SMALL = Decoder(layers=2, width=2048, gated=6144, vocabulary=8192)
PHI_3_MINI = Decoder(layers=32, width=3072, gated=8192, vocabulary=32064)


def write_model(
    folder: Path, k_major: bool, decoder: Decoder = SMALL, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write a decoder's QDQ products into a new folder, weights in an external data file, [K, N] if `k_major`, else [N, K].

    `progress` is called with (bytes written, bytes to write). Returns the path of the model.
    """
    from onnx import TensorProto, helper

    from ort_qdq_plugin.model.messages import refer

    folder.mkdir()
    nodes: list[NodeProto] = []
    tensors: list[TensorProto] = []
    with open(folder / "model.onnx.data", "wb") as data:

        def store(name: str, kind: int, shape: tuple[int, ...], content: np.ndarray) -> str:
            tensor = TensorProto(name=name, data_type=kind, dims=shape)
            refer(tensor, Path(data.name).name, data.tell(), content.nbytes)
            data.write(content.data)
            progress(data.tell(), decoder.nbytes)
            tensors.append(tensor)
            return name

        def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(operator, inputs, [name], f"{name}.node", **attributes))
            return name

        def product(left: str, name: str, k: int, n: int) -> str:
            weight, scales, zero_points = _numbers(k, n, len(tensors))
            blocks = (k // BLOCK_SIZE, n) if k_major else (n, k // BLOCK_SIZE)
            operands = [
                store(f"{name}.weight", TensorProto.UINT4, (k, n) if k_major else (n, k), weight),
                store(f"{name}.scale", TensorProto.FLOAT, blocks, scales),
                store(f"{name}.zero_point", TensorProto.UINT4, blocks, zero_points),
            ]
            axis = 0 if k_major else 1
            right = node("DequantizeLinear", operands, f"{name}.dequantized", axis=axis, block_size=BLOCK_SIZE)
            if not k_major:
                right = node("Transpose", [right], f"{name}.transposed", perm=[1, 0])
            return node("MatMul", [left, right], f"{name}.out")

        value = "x"
        *products, head = decoder.products
        for wide, narrow in zip(products[::2], products[1::2], strict=True):
            # Queries, keys and values, or gates and what they let through: the last part goes on, as the first one says.
            parts = [f"{wide[0]}.{part}" for part in range(wide[2] // narrow[1])]
            nodes.append(helper.make_node("Split", [product(value, *wide)], parts, axis=-1, num_outputs=len(parts)))
            passed = node("Mul", [parts[-1], node("Sigmoid", parts[:1], f"{wide[0]}.open")], f"{wide[0]}.passed")
            value = node("Add", [value, product(passed, *narrow)], f"{narrow[0]}.sum")
        value = product(value, *head)
    widths = {"x": decoder.width, value: decoder.vocabulary}
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", width]) for name, width in widths.items()
    ]
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
