"""A canvas with small random constants."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from conformance.drawing.canvas import Canvas
from conformance.drawing.elements import ELEMENTS, FLOATS, raw_float, raw_quantized, raw_tensor, typed_tensor
from conformance.drawing.weight import PER_TENSOR, Weight, Zero, scale_shape_of

__all__ = ["ROWS", "Draft", "stack"]

ROWS = "m"
"""Name of the dimension of inputs that stands for any number of rows."""


class Draft(Canvas):
    """A small model being drawn up. Its random numbers follow from the seed, or are the next ones of its parent."""

    def __init__(self, seed: str = "", *, opset: int = 21, parent: Draft | None = None) -> None:
        super().__init__(opset)
        self.rng: np.random.Generator = parent.rng if parent else np.random.default_rng(zlib.crc32(seed.encode()))
        self.constant_nodes = False
        self.typed_data = False

    def constant(self, tensor: TensorProto) -> str:
        """Adds a constant: an initializer, or a Constant node where the draft says so."""
        if self.typed_data:
            tensor = typed_tensor(tensor)
        if self.constant_nodes:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.initializers.append(tensor)
        return tensor.name

    def quantized(self, name: str, element: str, shape: Sequence[int]) -> str:
        kind = ELEMENTS[element]
        self.require(kind.bits)
        bits = min(kind.bits, 12)  # int32 and uint16 stay in a range where float adds up exactly enough
        low = -(1 << bits - 1) if kind.signed else 0
        values = self.rng.integers(low, low + (1 << bits), tuple(shape))
        return self.constant(raw_tensor(name, kind.code, shape, raw_quantized(values, kind.bits)))

    def floats(self, name: str, shape: Sequence[int], kind: str = "float", *, low: float = 0.01, high: float = 0.03) -> str:
        values = self.rng.uniform(low, high, tuple(shape))
        return self.constant(raw_tensor(name, FLOATS[kind], shape, raw_float(np.asarray(values), kind)))

    def scalar(self, name: str, value: float) -> str:
        """Adds a float constant without dimensions."""
        return self.constant(raw_tensor(name, TensorProto.FLOAT, [], np.float32(value).tobytes()))

    def ints(self, name: str, values: Sequence[int]) -> str:
        """Adds a 1-D int64 constant: a shape, or axes."""
        return self.constant(raw_tensor(name, TensorProto.INT64, [len(values)], np.array(values, "<i8").tobytes()))

    def dequantize(
        self,
        name: str,
        shape: Sequence[int],
        *,
        axis: int,
        block: int = 32,
        element: str = "uint4",
        zero: Zero = "random",
        scale: str = "float",
        scale_shape: Sequence[int] | None = None,
        scale_range: tuple[float, float] = (0.01, 0.03),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Adds a quantized constant with its scales, zero points and DequantizeLinear, and gives the latter's output."""
        self.quantized(name, element, shape)
        if scale_shape is None:
            scale_shape = scale_shape_of(shape, axis, block)
        low, high = scale_range
        inputs = [name, self.floats(f"{name}_s", scale_shape, scale, low=low, high=high)]
        if zero == "random":
            inputs.append(self.quantized(f"{name}_z", element, scale_shape))
        elif zero == "default":
            kind = ELEMENTS[element]
            raw = raw_quantized(np.full(tuple(scale_shape), kind.default_zero), kind.bits)
            inputs.append(self.constant(raw_tensor(f"{name}_z", kind.code, scale_shape, raw)))
        if block != PER_TENSOR:
            attributes = {"axis": axis, **attributes}
        if block > 0:
            attributes = {"block_size": block, **attributes}
        return self.node("DequantizeLinear", inputs, f"{name}_d", domain=domain, **attributes)

    def weight(self, weight: Weight, name: str = "w", **rest: Any) -> str:
        stored = {name: getattr(weight, name) for name in ("axis", "block", "element", "zero", "scale")}
        return self.dequantize(name, weight.shape, **(stored | rest))


def stack(layers: int, width: int, seed: str = "stack", **weight: Any) -> onnx.ModelProto:
    """A chain of square products from `x` to `y`, each scaled down by Tanh."""
    draft = Draft(seed)
    value = draft.input("x", [ROWS, width])
    for layer in range(layers):
        drawn = Weight(k=width, n=width, **weight)
        dequantized = draft.weight(drawn, f"w{layer}")
        if drawn.n_major:
            dequantized = draft.node("Transpose", [dequantized], f"t{layer}", perm=[1, 0])
        product = draft.node("MatMul", [value, dequantized], f"p{layer}")
        value = draft.node("Tanh", [product], "y" if layer == layers - 1 else f"h{layer}")
    draft.output("y", [ROWS, width])
    return draft.model()
