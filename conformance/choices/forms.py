"""A product with a quantized weight, in every form that is exact."""

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import FLOATS, MS, Array, pack, raw_float, raw_tensor, unpack
from conformance.drawing.weight import Weight
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import create_session, report_of

__all__ = ["LIMITS", "ONCE", "OURS", "STOCK", "Contender", "Kind", "Product"]

STOCK, OURS, ONCE = "stock", "this package", "once"
"""Contenders. The others are called by their bits and blocks."""

LIMITS = {("float", 0): 1e-5, ("float16", 0): 2e-3, ("float", 4): 2e-2, ("float16", 4): 2e-2}
"""The largest error at an accuracy level, over the largest result."""


_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"

_DEFAULT_BLOCK, _LARGEST_2_BIT_BLOCK = 32, 256
_SMALLER_BLOCKS = (64, 128, 256)


class Kind(NamedTuple):
    """A weight and an accuracy level."""

    weight: Weight
    level: int

    def __str__(self) -> str:
        w = self.weight
        block = f"blocks of {w.block}" if w.block else "per channel"
        layout = "N-major" if w.n_major else "K-major"
        return f"{w.kind.bits} bits, level {self.level}, {block}, {layout}, {w.scale}, {w.k}x{w.n}"


class Contender(NamedTuple):
    """One way of running a product."""

    session: ort.InferenceSession
    growth: float  # its operands' bytes, over those that the model stores


def _forms(kind: Kind) -> Iterator[tuple[int, int]]:
    """Bits and block sizes of the fused nodes that are exact."""
    bits, block = kind.weight.kind.bits, kind.weight.block
    own = block or _DEFAULT_BLOCK
    if bits > 2 or own <= _LARGEST_2_BIT_BLOCK:
        yield bits, own
    # Without blocks, and without rounding, blocks of any size are exact.
    longest = block or (_DEFAULT_BLOCK if kind.level else kind.weight.k)
    for smaller in _SMALLER_BLOCKS:
        if smaller != own and smaller <= longest:
            yield bits, smaller
    if bits == 2:
        yield 4, own


class Product:
    """A QDQ model of one product, and the same weight in other forms."""

    def __init__(self, kind: Kind) -> None:
        self.kind, weight = kind, kind.weight
        draft = self._draft()
        dequantized = draft.weight(weight)
        if weight.n_major:
            dequantized = draft.node("Transpose", [dequantized], perm=[1, 0])
        draft.node("MatMul", ["x", dequantized], "y")
        self.qdq = draft.model().SerializeToString()
        raw = {tensor.name: tensor.raw_data for tensor in draft.initializers}
        self.stored_bytes = sum(map(len, raw.values()))
        self._kind = np.dtype("<f4" if weight.scale == "float" else "<f2")
        shape = weight.scale_shape
        scales = np.frombuffer(raw["w_s"], self._kind).reshape(shape)
        elements, zero_points = (self._unpacked(raw[name], of) for name, of in (("w", weight.shape), ("w_z", shape)))
        # As MatMulNBits has them: [N, K], and a line of blocks for each of N.
        lines = (weight.n, 1) if not weight.block else (weight.n, -1)
        self._elements = elements if weight.n_major else elements.T
        self._scales, self._zero_points = (
            values.reshape(lines) if not weight.block or weight.n_major else values.T for values in (scales, zero_points)
        )

    def _unpacked(self, raw: bytes, shape: Any) -> Array:
        count = int(np.prod(shape))
        return unpack(np.frombuffer(raw, np.uint8), self.kind.weight.kind.bits)[:count].reshape(shape)

    def _draft(self) -> Draft:
        weight = self.kind.weight
        draft = Draft(str(self.kind))
        draft.input("x", [ROWS, weight.k], weight.scale)
        draft.output("y", [ROWS, weight.n], weight.scale)
        return draft

    def _for_each(self, values: Array, block: int) -> Array:
        """Values of the weight's own blocks, for each of these smaller ones: [N, ceil(K/block)]."""
        weight = self.kind.weight
        repeats = weight.block // block if weight.block else -(-weight.k // block)
        return np.repeat(values, repeats, axis=1)[:, : -(-weight.k // block)]

    def fused(self, bits: int, block: int) -> tuple[bytes, int]:
        """A model with one MatMulNBits, and its operands' bytes."""
        weight, draft = self.kind.weight, self._draft()
        blocks = -(-weight.k // block)
        padded = np.pad(self._elements, ((0, 0), (0, blocks * block - weight.k)))
        scales = np.ascontiguousarray(self._for_each(self._scales, block))
        zero_points = pack(self._for_each(self._zero_points, block), bits)
        quantized = pack(padded, bits)
        tensors = (
            raw_tensor("B", 2, (weight.n, blocks, block * bits // 8), quantized.tobytes()),
            raw_tensor("s", FLOATS[weight.scale], [scales.size], scales.tobytes()),
            raw_tensor("z", 2, [zero_points.size], zero_points.tobytes()),
        )
        inputs = ["x", *map(draft.constant, tensors)]
        sizes = {"K": weight.k, "N": weight.n, "bits": bits, "block_size": block, "accuracy_level": self.kind.level}
        draft.node("MatMulNBits", inputs, "y", domain=MS, **sizes)
        return draft.model().SerializeToString(), sum(len(tensor.raw_data) for tensor in tensors)

    def once(self) -> tuple[bytes, int]:
        """A model with the weight dequantized, and the bytes that ONNX Runtime keeps of it."""
        weight, draft = self.kind.weight, self._draft()
        block = weight.block or weight.k
        scales, zero_points = (
            np.repeat(values, block, axis=1)[:, : weight.k].astype(np.float32)
            for values in (self._scales, self._zero_points)
        )
        dense = np.ascontiguousarray(((self._elements - zero_points) * scales).T)
        tensor = raw_tensor("w", FLOATS[weight.scale], (weight.k, weight.n), raw_float(dense, weight.scale))
        draft.node("MatMul", ["x", draft.constant(tensor)], "y")
        # Its kernel is for float, also where the model is in float16.
        return draft.model().SerializeToString(), weight.k * weight.n * 4

    def contenders(self) -> dict[str, Contender]:
        """Stock, this package and all forms, by their names."""
        options = quiet_options()
        options.add_session_config_entry(_LEVEL_KEY, str(self.kind.level))

        def stock(model: bytes, nbytes: int) -> Contender:
            return Contender(ort.InferenceSession(model, options, providers=CPU), nbytes / self.stored_bytes)

        ours = create_session(self.qdq, options, providers=CPU)
        report = report_of(ours)
        assert report is not None
        held = report.packed_bytes + report.borrowed_bytes if report.fused else self.stored_bytes
        named = {STOCK: stock(self.qdq, self.stored_bytes), OURS: Contender(ours, held / self.stored_bytes)}
        for bits, block in _forms(self.kind):
            named[f"{bits} bits, {block}"] = stock(*self.fused(bits, block))
        return {**named, ONCE: stock(*self.once())}

    def feed(self, rows: int) -> dict[str, Array]:
        x = np.random.default_rng(rows).standard_normal((rows, self.kind.weight.k))
        return {"x": x.astype(self._kind)}

    def wrong(self, contenders: Mapping[str, Contender]) -> Iterator[str]:
        """Those whose results are not the unoptimized model's."""
        options = quiet_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        feed, limit = self.feed(9), LIMITS[self.kind.weight.scale, self.kind.level]
        (right,) = ort.InferenceSession(self.qdq, options, providers=CPU).run(None, feed)
        for name, contender in contenders.items():
            (result,) = contender.session.run(None, feed)
            error = np.abs(result.astype(np.float64) - right).max() / np.abs(right.astype(np.float64)).max()
            if not error <= limit:
                yield f"{name} has an error of {error:.1e}"

    def form_of_stock(self) -> str:
        """What stock makes of the model, called as the contender of that form."""
        options = quiet_options()
        options.add_session_config_entry(_LEVEL_KEY, str(self.kind.level))
        with tempfile.TemporaryDirectory(prefix="choices-") as folder:
            options.optimized_model_filepath = f"{folder}/optimized.onnx"
            ort.InferenceSession(self.qdq, options, providers=CPU)
            nodes = onnx.load(options.optimized_model_filepath).graph.node
        for node in nodes:
            if node.op_type == "MatMulNBits":
                given = {attribute.name: attribute.i for attribute in node.attribute}
                return f"{given['bits']} bits, {given['block_size']}"
        return STOCK
