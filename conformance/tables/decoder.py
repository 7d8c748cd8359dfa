"""Models to measure with: a decoder's matrix products as QDQ, and the same weights as MatMulNBits.

`python -m conformance.tables.decoder --out DIR --layers 32 --variant uint4` writes a pair:

- `qdq.onnx`: DequantizeLinear -> [Transpose ->] MatMul, in standard ONNX;
- `qop.onnx`: com.microsoft MatMulNBits holding exactly the same numbers.

A variant is a weight type and, each after a dash, what differs from the usual: `nmajor` (stored [N, K]
behind a Transpose instead of [K, N]), `zp` or `nozp` (unsigned weights have zero points unless told
otherwise, signed ones have none), `fp16` (float16 scales and activations). Every weight is stored once
and differs from all others, and tensors are written one by one, so that neither writing nor reading a
model of any size has an easy way out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = [
    "ModelPair",
    "ModelSpec",
    "ensure_pair",
    "spec_of",
    "write_fanout_model",
    "write_float_model",
    "write_pair",
]

Bytes = NDArray[np.uint8]
Array = NDArray[Any]

_TENSOR_TYPES = {
    "uint2": TensorProto.UINT2,
    "int2": TensorProto.INT2,
    "uint4": TensorProto.UINT4,
    "int4": TensorProto.INT4,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
}
_FLOAT_TYPES = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
_PAGE = 4096
_CACHE_LINE = 64
# Protobuf refuses to parse a message of 2 GiB or more.
_PROTOBUF_LIMIT = 2**31 - 1
_FIELD_NUMBERS = 2**29
# Protobuf keys (field number * 8 + wire type 2) of the fields that are streamed.
_MODEL_GRAPH = b"\x3a"
_GRAPH_INITIALIZER = b"\x2a"
_TENSOR_RAW_DATA = b"\x4a"
# The field data_location with the value DEFAULT, which serializers put behind raw_data.
_DEFAULT_LOCATION = b"\x70\x00"


# Where weights are: in a file beside the .onnx, in it, or in it with every tensor saying so, as onnx.save leaves them after
# onnx.load of external data.
STORAGES = ("external", "inline", "inline, explicit DEFAULT")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides a model's bytes."""

    layers: int = 32
    hidden: int = 3072
    ffn: int = 8192
    vocab: int = 32064
    weight: str = "uint4"
    zero_points: bool = True
    n_major: bool = False
    block: int = 32
    scales: str = "float"
    storage: str = "external"
    accuracy_level: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weight not in _TENSOR_TYPES or self.scales not in _FLOAT_TYPES:
            raise ValueError(f"unknown types: weight {self.weight!r}, scales {self.scales!r}")
        if self.storage not in STORAGES:
            raise ValueError(f"unknown storage {self.storage!r}")
        if self.hidden % self.block or self.ffn % self.block or self.vocab % 8:
            raise ValueError("hidden and ffn must be multiples of the block, vocab of 8")

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return int(self.weight.removeprefix("u").removeprefix("int"))

    @property
    def signed(self) -> bool:
        """Whether the QDQ model stores signed weights (MatMulNBits never does)."""
        return self.weight.startswith("int")

    @property
    def products(self) -> list[Product]:
        """The matrix products, in the order in which they run."""
        shapes = {
            "qkv": (self.hidden, 3 * self.hidden),
            "o": (self.hidden, self.hidden),
            "gate_up": (self.hidden, 2 * self.ffn),
            "down": (self.ffn, self.hidden),
        }
        body = [Product(f"l{layer}.{name}", layer, k, n) for layer in range(self.layers) for name, (k, n) in shapes.items()]
        return [*body, Product("head", 0, self.hidden, self.vocab)]

    @property
    def elements(self) -> int:
        """How many weights the model has."""
        return sum(p.k * p.n for p in self.products)

    @property
    def weight_bytes(self) -> int:
        """Their size, without scales and zero points."""
        return self.elements * self.bits // 8


@dataclass(frozen=True)
class Product:
    """One MatMul with a constant [k, n] on its right."""

    name: str
    layer: int
    k: int
    n: int


@dataclass(frozen=True)
class ModelPair:
    """Two written models with equal weights."""

    spec: ModelSpec
    qdq: Path
    qop: Path


@dataclass(frozen=True)
class Quantized:
    """One product's numbers in one orientation: rows are N (N-major) or K (K-major)."""

    weight: Bytes  # packed along the rows, low bits first
    scales: NDArray[np.float32]
    zero_points: Bytes  # one byte each


@dataclass(frozen=True)
class Tensor:
    """An initializer whose bytes are made when they are written."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    nbytes: int
    make: Callable[[], Array]


def spec_of(variant: str, **changes: Any) -> ModelSpec:
    """Read a variant's name.

    >>> spec = spec_of("int4-nmajor", layers=2)
    >>> spec.weight, spec.zero_points, spec.n_major, spec.layers
    ('int4', False, True, 2)
    """
    weight, *flags = variant.split("-")
    unknown = set(flags) - {"nmajor", "zp", "nozp", "fp16"}
    if unknown:
        raise ValueError(f"variant {variant!r}: unknown {', '.join(sorted(unknown))}")
    return ModelSpec(
        weight=weight,
        zero_points="zp" in flags or ("nozp" not in flags and weight.startswith("u")),
        n_major="nmajor" in flags,
        scales="float16" if "fp16" in flags else "float",
        **changes,
    )


# ---- packed bits ----------------------------------------------------------------------------------


def unpack(packed: Bytes, bits: int) -> Bytes:
    """[..., B] bytes -> [..., B * 8 / bits] elements, low bits first."""
    fields = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(fields, axis=-1).astype(np.uint8).reshape(*packed.shape[:-1], -1)


def pack(elements: Bytes, bits: int) -> Bytes:
    """[..., E] elements -> [..., ceil(E * bits / 8)] bytes, low bits first, each row padded with zeros."""
    per_byte = 8 // bits
    missing = -elements.shape[-1] % per_byte
    if missing:
        elements = np.pad(elements, [(0, 0)] * (elements.ndim - 1) + [(0, missing)])
    packed = elements[..., 0::per_byte].copy()
    for i in range(1, per_byte):
        packed |= elements[..., i::per_byte] << (i * bits)
    joined: Bytes = packed
    return joined


def transpose_packed(rows: Bytes, bits: int, panel: int = 256) -> Bytes:
    """[R, C * bits / 8] bytes -> [C, R * bits / 8] bytes; a panel of rows is transposed at a time."""
    columns = rows.shape[1] * 8 // bits
    out = np.empty((columns, rows.shape[0] * bits // 8), np.uint8)
    for start in range(0, rows.shape[0], panel):
        elements = unpack(rows[start : start + panel], bits)
        packed = pack(np.ascontiguousarray(elements.T), bits)
        first = start * bits // 8
        out[:, first : first + packed.shape[1]] = packed
    return out


def _repeat(value: int, bits: int) -> np.uint8:
    """A byte that holds `value` in each of its fields."""
    repeated: np.uint8 = np.uint8(sum(value << shift for shift in range(0, 8, bits)))
    return repeated


# ---- numbers --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _random(k: int, n: int, bits: int, block: int, seed: int) -> Quantized:
    """Random numbers, N-major. Scales keep a product's output about as large as its input."""
    rng = np.random.default_rng((seed, k, n))
    blocks = k // block
    typical = np.float32(2.0 / (2**bits * math.sqrt(k)))
    return Quantized(
        weight=rng.integers(0, 256, (n, k * bits // 8), dtype=np.uint8),
        scales=(rng.random((n, blocks), dtype=np.float32) + np.float32(0.5)) * typical,
        zero_points=rng.integers(0, 2**bits, (n, blocks), dtype=np.uint8),
    )


@lru_cache(maxsize=16)
def _random_k_major(k: int, n: int, bits: int, block: int, seed: int) -> Quantized:
    """The same numbers, K-major."""
    numbers = _random(k, n, bits, block, seed)
    return Quantized(
        weight=transpose_packed(numbers.weight, bits),
        scales=np.ascontiguousarray(numbers.scales.T),
        zero_points=np.ascontiguousarray(numbers.zero_points.T),
    )


def _numbers(spec: ModelSpec, product: Product, n_major: bool) -> Quantized:
    """A product's own unsigned numbers.

    Few tensors are drawn; the others flip bits of every weight and zero point of one, and stretch its
    scales. Both act on each element alone, so that they mean the same in either orientation.
    """
    draw, flip = divmod(product.layer, 2**spec.bits)
    source = _random if n_major else _random_k_major
    base = source(product.k, product.n, spec.bits, spec.block, spec.seed + draw)
    return Quantized(
        weight=base.weight ^ _repeat(flip, spec.bits),
        scales=base.scales * np.float32(1 + product.layer / 256),
        zero_points=base.zero_points ^ np.uint8(flip),
    )


def _scales(spec: ModelSpec, numbers: Quantized) -> Array:
    return numbers.scales.astype(np.float16 if spec.scales == "float16" else np.float32)


def _qdq_tensors(spec: ModelSpec, product: Product) -> list[Tensor]:
    """Weight, scales and zero points as DequantizeLinear takes them."""
    blocks = product.k // spec.block
    sign = 1 << (spec.bits - 1) if spec.signed else 0

    def numbers() -> Quantized:
        return _numbers(spec, product, spec.n_major)

    def oriented(rows: int) -> tuple[int, int]:
        return (product.n, rows) if spec.n_major else (rows, product.n)

    tensors = [
        Tensor(
            f"{product.name}.weight",
            _TENSOR_TYPES[spec.weight],
            oriented(product.k),
            product.k * product.n * spec.bits // 8,
            lambda: numbers().weight ^ _repeat(sign, spec.bits),
        ),
        Tensor(
            f"{product.name}.scale",
            _FLOAT_TYPES[spec.scales],
            oriented(blocks),
            blocks * product.n * _scale_size(spec),
            lambda: _scales(spec, numbers()),
        ),
    ]
    if spec.zero_points:
        tensors.append(
            Tensor(
                f"{product.name}.zero_point",
                _TENSOR_TYPES[spec.weight],
                oriented(blocks),
                -(-blocks * product.n * spec.bits // 8),
                lambda: pack((numbers().zero_points ^ np.uint8(sign)).reshape(-1), spec.bits),
            )
        )
    return tensors


def _qop_tensors(spec: ModelSpec, product: Product) -> list[Tensor]:
    """Weight, scales and zero points as MatMulNBits takes them.

    Without zero points DequantizeLinear takes 0. So does MatMulNBits for what were signed weights, as
    half the range is their 0; unsigned ones need zeros written out.
    """
    blocks = product.k // spec.block
    row_bytes = -(-blocks * spec.bits // 8)

    def numbers() -> Quantized:
        return _numbers(spec, product, n_major=True)

    def zero_points() -> Bytes:
        return pack(numbers().zero_points, spec.bits) if spec.zero_points else np.zeros((product.n, row_bytes), np.uint8)

    tensors = [
        Tensor(
            f"{product.name}.B",
            TensorProto.UINT8,
            (product.n, blocks, spec.block * spec.bits // 8),
            product.k * product.n * spec.bits // 8,
            lambda: numbers().weight,
        ),
        Tensor(
            f"{product.name}.scales",
            _FLOAT_TYPES[spec.scales],
            (product.n * blocks,),
            blocks * product.n * _scale_size(spec),
            lambda: _scales(spec, numbers()),
        ),
    ]
    if spec.zero_points or not spec.signed:
        tensors.append(
            Tensor(
                f"{product.name}.zero_points",
                TensorProto.UINT8,
                (product.n * row_bytes,),
                product.n * row_bytes,
                zero_points,
            )
        )
    return tensors


def _scale_size(spec: ModelSpec) -> int:
    return 2 if spec.scales == "float16" else 4


# ---- graphs ---------------------------------------------------------------------------------------


def _qdq_nodes(spec: ModelSpec, product: Product, x: str) -> list[NodeProto]:
    name = product.name
    dequantize = helper.make_node(
        "DequantizeLinear",
        [tensor.name for tensor in _qdq_tensors(spec, product)],
        [f"{name}.dense"],
        name=f"{name}.DequantizeLinear",
        axis=1 if spec.n_major else 0,
        block_size=spec.block,
    )
    if not spec.n_major:
        return [dequantize, _node("MatMul", [x, f"{name}.dense"], name)]
    transpose = helper.make_node("Transpose", [f"{name}.dense"], [f"{name}.turned"], name=f"{name}.Transpose", perm=[1, 0])
    return [dequantize, transpose, _node("MatMul", [x, f"{name}.turned"], name)]


def _qop_nodes(spec: ModelSpec, product: Product, x: str) -> list[NodeProto]:
    return [
        _node(
            "MatMulNBits",
            [x, *(tensor.name for tensor in _qop_tensors(spec, product))],
            product.name,
            domain="com.microsoft",
            K=product.k,
            N=product.n,
            bits=spec.bits,
            block_size=spec.block,
            accuracy_level=spec.accuracy_level,
        )
    ]


def _node(op: str, inputs: list[str], name: str, **attributes: Any) -> NodeProto:
    """A node with one output, named like the node."""
    return helper.make_node(op, inputs, [name], name=name, **attributes)


ProductNodes = Callable[[ModelSpec, Product, str], list[NodeProto]]


def _decoder_nodes(spec: ModelSpec, product_nodes: ProductNodes) -> Iterator[NodeProto]:
    """Each layer: norm -> qkv -> Slice -> o -> Add -> norm -> gate_up -> Slice -> down -> Add."""

    def norm(x: str, name: str) -> NodeProto:
        return _node("LayerNormalization", [x, "norm.weight"], name)

    def narrow(x: str, width: str) -> NodeProto:
        return _node("Slice", [x, "slice.start", width, "slice.axis"], f"{x}.narrow")

    products = iter(spec.products)
    x = "x"
    for layer in range(spec.layers):
        at = f"l{layer}"
        yield norm(x, f"{at}.norm1")
        yield from product_nodes(spec, next(products), f"{at}.norm1")
        yield narrow(f"{at}.qkv", "slice.hidden")
        yield from product_nodes(spec, next(products), f"{at}.qkv.narrow")
        yield _node("Add", [x, f"{at}.o"], f"{at}.mid")
        yield norm(f"{at}.mid", f"{at}.norm2")
        yield from product_nodes(spec, next(products), f"{at}.norm2")
        yield narrow(f"{at}.gate_up", "slice.ffn")
        yield from product_nodes(spec, next(products), f"{at}.gate_up.narrow")
        yield _node("Add", [f"{at}.mid", f"{at}.down"], f"{at}.out")
        x = f"{at}.out"
    yield norm(x, "norm")
    yield from product_nodes(spec, next(products), "norm")


def _model(
    nodes: Iterable[NodeProto],
    constants: dict[str, Array],
    width: int,
    output: tuple[str, int],
    float_type: str = "float",
    bits: int = 4,
) -> ModelProto:
    """A model from x[b, s, width] to one output, without its large tensors.

    Three axes, as decoders have: of a two-dimensional MatMul and the Add behind it ORT makes a Gemm,
    which hides the product from its own QDQ fusion.
    """
    element = _FLOAT_TYPES[float_type]
    name, out_width = output
    graph = helper.make_graph(
        list(nodes),
        "conformance",
        [helper.make_tensor_value_info("x", element, ["b", "s", width])],
        [helper.make_tensor_value_info(name, element, ["b", "s", out_width])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    # DequantizeLinear knows 4 bits since opset 21 and 2 bits since opset 25.
    opset, ir_version = (25, 13) if bits == 2 else (21, 10)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def _decoder(spec: ModelSpec, product_nodes: ProductNodes) -> ModelProto:
    constants: dict[str, Array] = {
        "norm.weight": np.ones(spec.hidden, np.float16 if spec.scales == "float16" else np.float32),
        "slice.start": np.array([0]),
        "slice.axis": np.array([2]),
        "slice.hidden": np.array([spec.hidden]),
        "slice.ffn": np.array([spec.ffn]),
    }
    nodes = _decoder_nodes(spec, product_nodes)
    return _model(nodes, constants, spec.hidden, ("head", spec.vocab), spec.scales, spec.bits)


# ---- files ----------------------------------------------------------------------------------------


def _write(path: Path, model: ModelProto, tensors: Iterable[Tensor], storage: str) -> None:
    if storage == "external":
        _write_external(path, model, tensors)
    else:
        _write_inline(path, model, list(tensors), b"" if storage == "inline" else _DEFAULT_LOCATION)


def _write_external(path: Path, model: ModelProto, tensors: Iterable[Tensor]) -> None:
    """Write the model and its large tensors, those into a file beside it."""
    location = path.name + ".data"
    with open(path.with_name(location), "wb") as data:
        for tensor in tensors:
            alignment = _PAGE if tensor.nbytes >= _PAGE else _CACHE_LINE
            data.write(bytes(-data.tell() % alignment))
            entry = _declare(tensor)
            entry.data_location = TensorProto.EXTERNAL
            where = {"location": location, "offset": str(data.tell()), "length": str(tensor.nbytes)}
            for key, value in where.items():
                entry.external_data.add(key=key, value=value)
            model.graph.initializer.append(entry)
            _write_bytes(data, tensor)
        _settle(data)
    path.write_bytes(model.SerializeToString())


def _write_inline(path: Path, model: ModelProto, tensors: list[Tensor], end: bytes) -> None:
    """Write one file that holds everything, never more than one tensor in memory.

    `end` are fields that every tensor has behind its bytes. The graph's length precedes it, so that all lengths are added up
    before anything is written.
    """
    heads = []
    for tensor in tensors:
        declared = _declare(tensor).SerializeToString() + _TENSOR_RAW_DATA + _varint(tensor.nbytes)
        heads.append(_GRAPH_INITIALIZER + _varint(len(declared) + tensor.nbytes + len(end)) + declared)
    graph_head, graph_tail = _split(model.graph, "initializer")
    model.ClearField("graph")
    head, tail = _split(model, "graph")
    length = len(graph_head) + sum(map(len, heads)) + sum(t.nbytes + len(end) for t in tensors) + len(graph_tail)
    if length > _PROTOBUF_LIMIT:
        raise ValueError(f"{path}: {length} bytes do not fit one protobuf message")
    with open(path, "wb") as file:
        file.write(head + _MODEL_GRAPH + _varint(length) + graph_head)
        for entry, tensor in zip(heads, tensors, strict=True):
            file.write(entry)
            _write_bytes(file, tensor)
            file.write(end)
        file.write(graph_tail + tail)
        _settle(file)


def _split(message: ModelProto | GraphProto, field: str) -> tuple[bytes, bytes]:
    """What serializes up to the end of a field, and after it.

    Protobuf allows any order; this is the one every writer produces, and some readers expect.
    """
    number = message.DESCRIPTOR.fields_by_name[field].number
    halves = []
    for wanted in (range(number + 1), range(number + 1, _FIELD_NUMBERS)):
        half = type(message)()
        half.CopyFrom(message)
        for descriptor, _ in message.ListFields():
            if descriptor.number not in wanted:
                half.ClearField(descriptor.name)
        halves.append(half.SerializeToString())
    return halves[0], halves[1]


def _declare(tensor: Tensor) -> TensorProto:
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _write_bytes(file: BinaryIO, tensor: Tensor) -> None:
    array = np.ascontiguousarray(tensor.make())
    if array.nbytes != tensor.nbytes:
        raise AssertionError(f"{tensor.name}: {array.nbytes} bytes made, {tensor.nbytes} declared")
    file.write(array.reshape(-1).view(np.uint8).data)


def _settle(file: BinaryIO) -> None:
    """Have everything on the disk, so that no write-back disturbs what is measured next."""
    file.flush()
    os.fsync(file.fileno())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# ---- what callers want ----------------------------------------------------------------------------


def write_pair(spec: ModelSpec, folder: Path) -> ModelPair:
    """Write `qdq.onnx` and `qop.onnx` with equal weights into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = ModelPair(spec, folder / "qdq.onnx", folder / "qop.onnx")
    qdq = (tensor for product in spec.products for tensor in _qdq_tensors(spec, product))
    _write(pair.qdq, _decoder(spec, _qdq_nodes), qdq, spec.storage)
    qop = (tensor for product in spec.products for tensor in _qop_tensors(spec, product))
    _write(pair.qop, _decoder(spec, _qop_nodes), qop, spec.storage)
    _random.cache_clear()
    _random_k_major.cache_clear()
    return pair


def ensure_pair(spec: ModelSpec, folder: Path) -> ModelPair:
    """Write a pair unless the folder already holds the one of this specification."""
    stamp = folder / "spec.json"
    wanted = json.dumps(dataclasses.asdict(spec))
    if stamp.exists() and stamp.read_text() == wanted:
        return ModelPair(spec, folder / "qdq.onnx", folder / "qop.onnx")
    stamp.unlink(missing_ok=True)
    pair = write_pair(spec, folder)
    stamp.write_text(wanted)
    return pair


def write_float_model(path: Path, width: int, layers: int, storage: str) -> None:
    """Write a model without any QDQ: `layers` float products of [width, width]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def weight() -> Array:
        scaled: Array = rng.standard_normal((width, width), dtype=np.float32) / np.float32(math.sqrt(width))
        return scaled

    names = ["x", *(f"l{layer}" for layer in range(layers))]
    nodes = [_node("MatMul", [names[i], f"{names[i + 1]}.weight"], names[i + 1]) for i in range(layers)]
    tensors = [Tensor(f"{name}.weight", TensorProto.FLOAT, (width, width), 4 * width * width, weight) for name in names[1:]]
    _write(path, _model(nodes, {}, width, (names[-1], width)), tensors, storage)


def write_fanout_model(path: Path, nodes: int = 5000, products: int = 500, width: int = 128) -> ModelSpec:
    """Write a QDQ model of many nodes and many small products; the rest is element-wise glue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = ModelSpec(layers=0, hidden=width, ffn=width, vocab=width)
    glue = nodes // products - 2
    chain: list[NodeProto] = []
    tensors: list[Tensor] = []
    x = "x"
    for i in range(products):
        product = Product(f"p{i}", i, width, width)
        chain += _qdq_nodes(spec, product, x)
        tensors += _qdq_tensors(spec, product)
        x = product.name
        for step in range(glue):
            chain.append(_node("Softsign" if step % 2 else "Neg", [x], f"p{i}.{step}"))
            x = f"p{i}.{step}"
    _write(path, _model(chain, {}, width, (x, width)), tensors, "external")
    return spec


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder; each variant gets one inside")
    parser.add_argument("--variant", nargs="+", default=["uint4"], help="such as uint4 int4 uint4-nmajor")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--ffn", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=32064)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--accuracy-level", type=int, default=4, help="of the MatMulNBits nodes")
    parser.add_argument("--storage", default="external", choices=STORAGES, help="inline: below 2 GiB")
    return parser.parse_args()


def main() -> None:
    """Write the pairs the command line asks for."""
    args = _arguments()
    shared = ("layers", "hidden", "ffn", "vocab", "block", "accuracy_level", "storage")
    for variant in args.variant:
        spec = spec_of(variant, **{key: getattr(args, key) for key in shared})
        start = time.perf_counter()
        pair = write_pair(spec, args.out / variant)
        seconds = time.perf_counter() - start
        print(f"{pair.qdq.parent}: {2 * spec.weight_bytes / 1e9:.2f} GB of weights in {seconds:.1f} s")


if __name__ == "__main__":
    main()
