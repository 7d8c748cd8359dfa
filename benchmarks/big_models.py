"""The one writer of models of any size: drawn node by node as in `conformance.drawing`, large tensors written at once.

`write_pair` writes a decoder's matrix products in two forms that hold exactly the same numbers:

- `qdq.onnx`: DequantizeLinear -> [Transpose ->] MatMul, in standard ONNX
- `qop.onnx`: com.microsoft's MatMulNBits

A variant is an element type and, each behind a dash, what differs from the usual: `nmajor` (stored [N, K] behind a Transpose
instead of [K, N]), `zp` or `nozp` (unsigned weights have zero points unless the variant says otherwise, signed ones have
none), `fp16` (float16 scales and activations).
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, TensorProto, numpy_helper

from conformance.drawing.canvas import Canvas
from conformance.drawing.elements import ELEMENTS, FLOATS, MS, Array, Bytes, Dim, external_tensor, pack, raw_tensor, unpack
from conformance.drawing.weight import Weight, Zero
from ort_qdq_plugin.cli.demo_model import PHI_3_MINI, Decoder

__all__ = ["BigWeight", "Pair", "Sheet", "write_pair"]

_DTYPES = {"float": np.float32, "float16": np.float16}
_PAGE, _CACHE_LINE = 4096, 64


class _Numbers(NamedTuple):
    """A weight's unsigned numbers in one orientation: rows are N (N-major) or K (K-major)."""

    weight: Bytes  # packed along the rows, low bits first
    scales: Array
    zero_points: Bytes  # one byte each


@dataclass(frozen=True)
class BigWeight(Weight):
    """A weight in blocks, whose numbers follow from its size, name and seed."""

    name: str = "w"
    seed: int = 0

    @lru_cache(maxsize=1)  # noqa: B019  # it holds one weight
    def numbers(self) -> _Numbers:
        """Random numbers, N-major; scales keep a product's output about as large as its input."""
        bits, blocks = self.kind.bits, self.k // self.block
        rng = np.random.default_rng((self.seed, *self.name.encode()))
        largest = np.float32(2 / (2**bits * math.sqrt(self.k)))
        scales = (rng.random((self.n, blocks), dtype=np.float32) + np.float32(0.5)) * largest
        return _Numbers(
            rng.integers(0, 256, (self.n, self.k * bits // 8), dtype=np.uint8),
            scales.astype(_DTYPES[self.scale]),
            rng.integers(0, 2**bits, (self.n, blocks), dtype=np.uint8),
        )

    def stored(self) -> _Numbers:
        """The numbers as DequantizeLinear takes them: signed or not, K-major or N-major."""
        bits, (weight, scales, zero_points) = self.kind.bits, self.numbers()
        flip = 1 << bits - 1 if self.kind.signed else 0
        weight, zero_points = weight ^ np.uint8(flip * 0xFF // (2**bits - 1)), zero_points ^ np.uint8(flip)
        if self.n_major:
            return _Numbers(weight, scales, zero_points)
        return _Numbers(pack(np.ascontiguousarray(unpack(weight, bits).T), bits), scales.T, zero_points.T)


class Sheet(Canvas):
    """A model being drawn. Large tensors are in a file beside it, inside it, or inside it and saying so, by `storage`:

    "external", "inline" or "inline, explicit DEFAULT", which is how onnx.save leaves them after onnx.load of external data.
    """

    def __init__(self, path: Path, storage: str = "external") -> None:
        super().__init__()
        self._path, self._storage = path, storage
        self._data = path.with_name(f"{path.name}.data")
        self._data.unlink(missing_ok=True)

    def small(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def tensor(self, name: str, code: int, dims: Sequence[int], value: Array) -> str:
        """Adds a large constant from its bytes."""
        if self._storage == "external":
            with open(self._data, "ab") as data:
                data.write(bytes(-data.tell() % (_PAGE if value.nbytes >= _PAGE else _CACHE_LINE)))
                self.initializers.append(external_tensor(name, code, dims, self._data.name, data.tell(), value.nbytes))
                data.write(np.ascontiguousarray(value).data)
        else:
            self.initializers.append(raw_tensor(name, code, dims, value.tobytes()))
            if self._storage != "inline":
                self.initializers[-1].data_location = TensorProto.DEFAULT
        return name

    def operands(self, w: BigWeight, shape: Sequence[int] = (), scale_shape: Sequence[int] = ()) -> list[str]:
        """Adds a weight, its scales and zero points as DequantizeLinear takes them."""
        self.require(w.kind.bits)
        weight, scales, zero_points = w.stored()
        scale_shape = scale_shape or w.scale_shape
        added = [
            self.tensor(f"{w.name}.weight", w.kind.code, shape or w.shape, weight),
            self.tensor(f"{w.name}.scale", FLOATS[w.scale], scale_shape, scales),
        ]
        if w.zero != "none":
            packed = pack(zero_points.reshape(-1), w.kind.bits)
            added.append(self.tensor(f"{w.name}.zero_point", w.kind.code, scale_shape, packed))
        return added

    def dequantize(self, w: BigWeight, operands: Sequence[str], axis: int | None = None) -> str:
        return self.node("DequantizeLinear", operands, axis=w.axis if axis is None else axis, block_size=w.block)

    def dequantized(self, w: BigWeight) -> str:
        return self.dequantize(w, self.operands(w))

    def product(self, x: str, w: BigWeight) -> str:
        """Adds a weight, its DequantizeLinear, a Transpose where it is N-major, and a MatMul."""
        dense = self.dequantized(w)
        return self.node("MatMul", [x, self.node("Transpose", [dense], perm=[1, 0]) if w.n_major else dense])

    def fused_operands(self, w: BigWeight, block: int = 0, alpha: float = 1.0, scale: str = "") -> list[str]:
        """Adds a weight as MatMulNBits takes it, in blocks of its own size or of a divisor, scales repeated, times alpha.

        Without zero points DequantizeLinear takes 0. So does MatMulNBits for what were signed weights, as half the range is
        their 0; unsigned ones need zeros written out.
        """
        bits, block, scale = w.kind.bits, block or w.block, scale or w.scale
        weight, scales, zero_points = w.numbers()
        scales, zero_points = (np.repeat(numbers, w.block // block, axis=1) for numbers in (scales, zero_points))
        scales = (scales * np.float32(alpha)).astype(_DTYPES[scale])
        added = [
            self.tensor(f"{w.name}.B", TensorProto.UINT8, (w.n, w.k // block, block * bits // 8), weight),
            self.tensor(f"{w.name}.scales", FLOATS[scale], [scales.size], scales),
        ]
        if w.zero != "none" or not w.kind.signed:
            packed = pack(zero_points * np.uint8(w.zero != "none"), bits)
            added.append(self.tensor(f"{w.name}.zero_points", TensorProto.UINT8, [packed.size], packed))
        return added

    def fused(self, x: str, w: BigWeight, operands: Sequence[str], block: int = 0, bias: str = "", level: int = 4) -> str:
        """Adds a MatMulNBits on what `fused_operands` added."""
        inputs = [x, *operands, *(["", bias] if bias else [])]
        sizes = {"K": w.k, "N": w.n, "bits": w.kind.bits, "block_size": block or w.block, "accuracy_level": level}
        return self.node("MatMulNBits", inputs, "", domain=MS, **sizes)

    def branch(self, name: str, output: str, shape: Sequence[Dim]) -> GraphProto:
        """The nodes drawn so far as a subgraph; the model's own begin anew."""
        inner = Canvas()
        inner.nodes, self.nodes = self.nodes, []
        inner.output(output, shape)
        return inner.graph(name)

    def save(self) -> None:
        """Writes the model, until it is on the disk: no write-back is to disturb what is measured next."""
        self._path.write_bytes(self.model().SerializeToString())
        for path in filter(Path.exists, (self._path, self._data)):
            with open(path, "r+b") as file:  # which Windows wants for this
                os.fsync(file.fileno())


class Pair(NamedTuple):
    """Two models with equal weights, such as `weight`."""

    shape: Decoder
    weight: BigWeight
    qdq: Path
    qop: Path

    @property
    def weight_bytes(self) -> int:
        """Of all weights, without scales and zero points."""
        return sum(k * n for _, k, n in self.shape.products) * self.weight.kind.bits // 8


def write_pair(
    folder: Path, variant: str, shape: Decoder = PHI_3_MINI, *, storage: str = "external", level: int = 4, seed: int = 0
) -> Pair:
    """A variant's two models, written unless the folder has just these; `level` is the accuracy level of the second."""
    element, *flags = variant.split("-")
    if element not in ELEMENTS or not {"nmajor", "zp", "nozp", "fp16"}.issuperset(flags):
        raise ValueError(f"unknown variant {variant!r}")
    zeros = "zp" in flags or ("nozp" not in flags and not ELEMENTS[element].signed)
    zero: Zero = "random" if zeros else "none"
    scale = "float16" if "fp16" in flags else "float"
    weight = BigWeight(element, zero=zero, scale=scale, n_major="nmajor" in flags, seed=seed)
    pair = Pair(shape, weight, folder / "qdq.onnx", folder / "qop.onnx")
    stamp, wanted = folder / "pair.txt", repr((variant, shape, storage, level, seed))
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        _draw(Sheet(pair.qdq, storage), pair, Sheet.product)
        _draw(Sheet(pair.qop, storage), pair, lambda s, x, w: s.fused(x, w, s.fused_operands(w), level=level))
        stamp.write_text(wanted)
    return pair


def _draw(s: Sheet, pair: Pair, product: Callable[[Sheet, str, BigWeight], str]) -> None:
    """Each layer of a decoder, twice: norm -> product -> Slice -> product -> Add.

    Of three axes, as decoders have: of a two-dimensional MatMul and the Add behind it ONNX Runtime makes a Gemm, which hides
    the product from its own QDQ fusion.
    """
    kind, width = pair.weight.scale, pair.shape.width
    *weights, head = [replace(pair.weight, name=name, k=k, n=n) for name, k, n in pair.shape.products]
    x = s.input("x", ["b", "s", width], kind)
    norm = s.small("norm.weight", np.ones(width, _DTYPES[kind]))
    start, axis = s.small("slice.start", np.array([0])), s.small("slice.axis", np.array([2]))
    for wide, narrow in zip(weights[::2], weights[1::2], strict=True):
        made = product(s, s.node("LayerNormalization", [x, norm]), wide)
        end = s.small(f"{wide.name}.end", np.array([narrow.k]))
        x = s.node("Add", [x, product(s, s.node("Slice", [made, start, end, axis]), narrow)])
    s.output(product(s, s.node("LayerNormalization", [x, norm]), head), ["b", "s", head.n], kind)
    s.save()
