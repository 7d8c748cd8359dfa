"""The catalogue: the ways of writing a quantized weight that the pattern table checks.

Each `Pattern` builds one tiny model. Group 2, the plain layouts, is a pairwise cover of (what consumes the weight) x
(element type) x (zero points) x (block size) x (scale type) x (shape) x (rank of A), plus traps written by hand; group
3, the layouts that exporters write besides, is written by hand. Weights are random, seeded by the pattern's name, and
packed with NumPy, so that nothing depends on how the `onnx` helpers spell the small types.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

__all__ = ["PATTERNS", "Expectation", "Pattern", "Precision", "graphs_of", "quick_patterns"]

Expectation = Literal["fused", "reason", "either", "unfused"]
Precision = Literal["float", "float16", "bfloat16"]
Zero = Literal["none", "random", "default"]
Array = NDArray[Any]
Dim = int | str

MS = "com.microsoft"
ROWS = "m"
"""Name of the dimension that the table varies."""
PER_CHANNEL = 0
PER_TENSOR = -1
LARGEST_BLOCK = 256
"""Of the block sizes that MatMulNBits' kernel takes in every release."""
MAX_IDS = 48
"""Token ids fed to a Gather stay below this; every table has more rows."""


@dataclass(frozen=True)
class Pattern:
    """One row of the table: a model, and what is to become of it.

    `expects` is "fused" (exactly `fusions` of them), "reason" (nothing fused, and the report says why), "either" (a
    matter of cost: both are right, the numbers must hold), or "unfused" (nothing fused; nothing to report either, for
    the weight is no constant).
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    expects: Expectation
    since: int
    note: str = ""
    precision: Precision = "float"
    fusions: int = 1
    stays: int = 0  # DequantizeLinear nodes that something else still reads
    bias: bool = False
    quick: bool = False


# Tensors, packed by hand


@dataclass(frozen=True)
class Element:
    """A quantized element type."""

    code: int
    bits: int
    signed: bool

    @property
    def low(self) -> int:
        """The smallest value."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def default_zero(self) -> int:
        """The zero point that MatMulNBits takes when it is given none, seen as this type."""
        return 0 if self.signed else 1 << self.bits - 1


ELEMENTS: Mapping[str, Element] = {
    "uint2": Element(TensorProto.UINT2, 2, False),
    "int2": Element(TensorProto.INT2, 2, True),
    "uint4": Element(TensorProto.UINT4, 4, False),
    "int4": Element(TensorProto.INT4, 4, True),
    "uint8": Element(TensorProto.UINT8, 8, False),
    "int8": Element(TensorProto.INT8, 8, True),
    "uint16": Element(TensorProto.UINT16, 16, False),
    "int32": Element(TensorProto.INT32, 32, True),
}
FLOATS: Mapping[str, int] = {
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
FLOAT16_TINY = 2.0**-14


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those within it, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)


def _raw_quantized(values: Array, bits: int) -> bytes:
    """`values` in `bits` bits each, low bits first, the last byte filled up with zeros."""
    flat = values.reshape(-1).astype(np.int64)
    if bits >= 8:
        return bytes(flat.astype(f"<i{bits // 8}" if bits > 16 else f"<u{bits // 8}").tobytes())
    per_byte = 8 // bits
    flat = np.concatenate([flat & (1 << bits) - 1, np.zeros(-flat.size % per_byte, np.int64)])
    shifts = bits * np.arange(per_byte)
    return bytes((flat.reshape(-1, per_byte) << shifts).sum(axis=1).astype(np.uint8).tobytes())


def _raw_float(values: Array, scale: str) -> bytes:
    """`values` as little-endian float, float16 or bfloat16."""
    if scale == "bfloat16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if scale == "float" else "<f2").tobytes()


def _tensor(name: str, code: int, shape: Sequence[int], raw: bytes) -> TensorProto:
    """A tensor from its bytes."""
    tensor = TensorProto(name=name, data_type=code, raw_data=raw)
    tensor.dims.extend(shape)
    return tensor


def _typed(tensor: TensorProto) -> TensorProto:
    """The same tensor with its values in `float_data` or `int32_data` instead of `raw_data`."""
    raw = tensor.raw_data
    typed = TensorProto(name=tensor.name, data_type=tensor.data_type)
    typed.dims.extend(tensor.dims)
    if tensor.data_type == TensorProto.FLOAT:
        typed.float_data.extend(np.frombuffer(raw, "<f4").tolist())
    elif tensor.data_type == TensorProto.FLOAT16:
        typed.int32_data.extend(np.frombuffer(raw, "<u2").tolist())
    else:
        signed = tensor.data_type == TensorProto.INT8
        typed.int32_data.extend(np.frombuffer(raw, "<i1" if signed else "<u1").tolist())
    return typed


# Weights and models


@dataclass(frozen=True)
class Weight:
    """A weight of a MatMul: K rows and N columns as MatMul sees it, and how it is stored."""

    element: str = "uint4"
    k: int = 128
    n: int = 64
    block: int = 32  # elements along K that share a scale, or PER_CHANNEL, or PER_TENSOR
    zero: Zero = "random"
    scale: str = "float"
    n_major: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """The stored shape."""
        return (self.n, self.k) if self.n_major else (self.k, self.n)

    @property
    def axis(self) -> int:
        """DequantizeLinear's axis: K's for blocks, N's for channels."""
        k_axis = 1 if self.n_major else 0
        return k_axis if self.block > 0 else 1 - k_axis


class Draft:
    """A graph being drawn up: nodes and initializers, with random numbers of its own."""

    def __init__(self, seed: str, *, opset: int = 21, parent: Draft | None = None) -> None:
        self.rng: np.random.Generator = parent.rng if parent else np.random.default_rng(zlib.crc32(seed.encode()))
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.constant_nodes = False
        self.typed_data = False

    def node(self, op: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Adds a node, and gives its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], f"{output}_node", domain=domain, **attributes))
        return output

    def input(self, name: str, shape: Sequence[Dim], kind: str = "float") -> str:
        """Adds a graph input."""
        code = FLOATS.get(kind) or {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}.get(kind) or ELEMENTS[kind].code
        self.inputs.append(helper.make_tensor_value_info(name, code, shape))
        return name

    def output(self, name: str, shape: Sequence[Dim], kind: str = "float") -> str:
        """Adds a graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, FLOATS[kind], shape))
        return name

    def constant(self, tensor: TensorProto) -> str:
        """Adds a constant: an initializer, or a Constant node where the draft says so."""
        if self.typed_data:
            tensor = _typed(tensor)
        if self.constant_nodes:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.initializers.append(tensor)
        return tensor.name

    def quantized(self, name: str, element: str, shape: Sequence[int]) -> str:
        """Adds a random quantized constant."""
        kind = ELEMENTS[element]
        if kind.bits < 4:
            self.opset = max(self.opset, 25)
        bits = min(kind.bits, 12)  # int32 and uint16 stay in a range where float adds up exactly enough
        low = -(1 << bits - 1) if kind.signed else 0
        values = self.rng.integers(low, low + (1 << bits), tuple(shape))
        return self.constant(_tensor(name, kind.code, shape, _raw_quantized(values, kind.bits)))

    def floats(self, name: str, shape: Sequence[int], kind: str = "float", *, low: float = 0.01, high: float = 0.03) -> str:
        """Adds a random float constant."""
        values = self.rng.uniform(low, high, tuple(shape))
        return self.constant(_tensor(name, FLOATS[kind], shape, _raw_float(np.asarray(values), kind)))

    def ints(self, name: str, values: Sequence[int]) -> str:
        """Adds a 1-D int64 constant: a shape, or axes."""
        return self.constant(_tensor(name, TensorProto.INT64, [len(values)], np.array(values, "<i8").tobytes()))

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
        output: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Adds a quantized constant with its scales, zero points and DequantizeLinear, and gives the latter's output."""
        self.quantized(name, element, shape)
        if scale_shape is None:
            scale_shape = _scale_shape(shape, axis, block)
        inputs = [name, self.floats(f"{name}_s", scale_shape, scale, low=scale_range[0], high=scale_range[1])]
        if zero == "random":
            inputs.append(self.quantized(f"{name}_z", element, scale_shape))
        elif zero == "default":
            kind = ELEMENTS[element]
            zeros = np.full(tuple(scale_shape), kind.default_zero)
            raw = _raw_quantized(zeros, kind.bits)
            inputs.append(self.constant(_tensor(f"{name}_z", kind.code, scale_shape, raw)))
        if block != PER_TENSOR:
            attributes = {"axis": axis, **attributes}
        if block > 0:
            attributes = {"block_size": block, **attributes}
        return self.node("DequantizeLinear", inputs, output or f"{name}_d", domain=domain, **attributes)

    def weight(self, weight: Weight, name: str = "w", **rest: Any) -> str:
        """Adds a weight and its DequantizeLinear."""
        return self.dequantize(
            name,
            weight.shape,
            axis=rest.pop("axis", weight.axis),
            block=weight.block,
            element=weight.element,
            zero=weight.zero,
            scale=weight.scale,
            **rest,
        )

    def graph(self, name: str) -> onnx.GraphProto:
        """What was drawn, as a graph."""
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)

    def model(self) -> onnx.ModelProto:
        """What was drawn, as a model that imports no more than it uses."""
        drawn = self.graph("pattern")
        used = {node.domain for graph in graphs_of(drawn) for node in graph.node}
        domains = sorted({""} | used | {function.domain for function in self.functions})
        imports = [helper.make_opsetid(domain, 1 if domain else self.opset) for domain in domains]
        model: onnx.ModelProto = helper.make_model(
            drawn,
            opset_imports=imports,
            ir_version=13 if self.opset >= 25 else 10 if self.opset >= 21 else 8,
            functions=self.functions,
        )
        return model


def _scale_shape(shape: Sequence[int], axis: int, block: int) -> list[int]:
    """The scales' shape that DequantizeLinear wants."""
    if block == PER_TENSOR:
        return []
    if block == PER_CHANNEL:
        return [shape[axis]]
    scales = list(shape)
    scales[axis] = -(-shape[axis] // block)
    return scales


# Group 2: consumers, one function each. `x` and `y` have their types from the weight's scales.


def _a_shape(columns: int, rank: int) -> list[Dim]:
    """A's shape (and, with N for K, the result's) at a rank."""
    shape: list[Dim] = [2, 1, ROWS, columns]
    return [2, *shape[2:]] if rank == 3 else shape[-rank:]


def _ends(d: Draft, w: Weight, rank: int) -> None:
    """Adds the input `x` and the output `y`."""
    d.input("x", _a_shape(w.k, rank), w.scale)
    d.output("y", _a_shape(w.n, rank), w.scale)


def _n_major(d: Draft, w: Weight, **attributes: Any) -> str:
    """An N-major weight behind its Transpose."""
    return d.node("Transpose", [d.weight(replace(w, n_major=True), **attributes)], "t", perm=[1, 0])


def _bias(d: Draft, w: Weight, shape: Sequence[int] | None = None) -> str:
    """A bias of the weight's float type."""
    return d.floats("bias", [w.n] if shape is None else shape, w.scale, low=-1, high=1)


def _matmul(d: Draft, w: Weight, rank: int) -> None:
    _ends(d, w, rank)
    d.node("MatMul", ["x", d.weight(w)], "y")


def _transpose_matmul(d: Draft, w: Weight, rank: int) -> None:
    _ends(d, w, rank)
    d.node("MatMul", ["x", _n_major(d, w)], "y")


def _transpose_matmul_negative_axis(d: Draft, w: Weight, rank: int) -> None:
    _ends(d, w, rank)
    d.node("MatMul", ["x", _n_major(d, w, axis=replace(w, n_major=True).axis - 2)], "y")


def _gemm(d: Draft, w: Weight, rank: int, *, trans_b: bool = False, bias: bool = False, relu: bool = False) -> None:
    _ends(d, w, rank)
    inputs = ["x", d.weight(replace(w, n_major=trans_b))] + ([_bias(d, w)] if bias else [])
    attributes: dict[str, Any] = {"transB": 1} if trans_b else {}
    d.node("Gemm", inputs, "h" if relu else "y", **attributes)
    if relu:
        d.node("Relu", ["h"], "y")


def _fused_matmul(d: Draft, w: Weight, rank: int) -> None:
    _ends(d, w, rank)
    d.node("FusedMatMul", ["x", d.weight(replace(w, n_major=True))], "y", domain=MS, transB=1)


def _matmul_add(d: Draft, w: Weight, rank: int, *, swapped: bool = False, transposed: bool = False) -> None:
    _ends(d, w, rank)
    d.node("MatMul", ["x", _n_major(d, w) if transposed else d.weight(w)], "h")
    operands = ["h", _bias(d, w)]
    d.node("Add", operands[::-1] if swapped else operands, "y")


def _matmul_relu(d: Draft, w: Weight, rank: int, *, transposed: bool = False) -> None:
    _ends(d, w, rank)
    d.node("MatMul", ["x", _n_major(d, w) if transposed else d.weight(w)], "h")
    d.node("Relu", ["h"], "y")


def _dq_is_output(d: Draft, w: Weight, rank: int) -> None:
    _matmul(d, w, rank)
    d.output("w_d", w.shape, w.scale)


def _constant_nodes(d: Draft, w: Weight, rank: int, *, transposed: bool = False) -> None:
    d.constant_nodes = True
    (_transpose_matmul if transposed else _matmul)(d, w, rank)


def _typed_data(d: Draft, w: Weight, rank: int) -> None:
    d.typed_data = True
    _matmul(d, w, rank)


Consumer = Callable[[Draft, Weight, int], None]
CONSUMERS: Mapping[str, Consumer] = {
    "matmul": _matmul,
    "transpose-matmul": _transpose_matmul,
    "transpose-matmul-axis-1": _transpose_matmul_negative_axis,
    "gemm": _gemm,
    "gemm-bias": partial(_gemm, bias=True),
    "gemm-transB": partial(_gemm, trans_b=True),
    "gemm-transB-bias": partial(_gemm, trans_b=True, bias=True),
    "fusedmatmul-transB": _fused_matmul,
    "matmul-add": _matmul_add,
    "add-matmul": partial(_matmul_add, swapped=True),
    "transpose-matmul-add": partial(_matmul_add, transposed=True),
    "matmul-relu": _matmul_relu,
    "transpose-matmul-relu": partial(_matmul_relu, transposed=True),
    "gemm-relu": partial(_gemm, relu=True),
    "gemm-transB-bias-relu": partial(_gemm, trans_b=True, bias=True, relu=True),
    "dq-is-output": _dq_is_output,
    "constant-nodes": _constant_nodes,
    "constant-nodes-transpose": partial(_constant_nodes, transposed=True),
    "typed-data": _typed_data,
}
WITH_BIAS = frozenset(name for name in CONSUMERS if "bias" in name or "add" in name)
BLOCKS = (16, 32, 64, 128, 256, 512, PER_CHANNEL, PER_TENSOR)
SHAPES = ((256, 64), (300, 48), (145, 40), (192, 63), (24, 40), (160, 1), (576, 33))
"""[K, N]: plain; K no multiple of a block; odd K; odd N; K below the block; one column; larger than every block."""
QUICK_EACH = 2
"""So many rows of each consumer go into the quick subset; together they hold every value of every factor."""

FACTORS: Mapping[str, Sequence[Any]] = {
    "consumer": tuple(CONSUMERS),
    "element": ("uint2", "int2", "uint4", "int4", "uint8", "int8"),
    "zero": ("none", "random"),
    "scale": ("float", "float16"),
    "block": BLOCKS,
    "shape": SHAPES,
    "rank": (1, 2, 3, 4),
}


def _possible(choice: Mapping[str, Any]) -> bool:
    """Whether the operators can be put together like this: Gemm is for matrices."""
    return choice["rank"] == 2 or "gemm" not in choice["consumer"]


def _pairs(choice: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every two values of a choice."""
    return set(combinations(choice.items(), 2))


def _pairwise(tries: int = 40) -> list[dict[str, Any]]:
    """Choices in which every possible pair of values occurs; the same on every call."""
    dice = random.Random(2)
    pairs = [((one, a), (two, b)) for one, two in combinations(FACTORS, 2) for a in FACTORS[one] for b in FACTORS[two]]
    open_pairs = dict.fromkeys(dice.sample(pairs, len(pairs)))
    choices: list[dict[str, Any]] = []
    while open_pairs:
        pair = next(iter(open_pairs))
        drawn = [{name: dice.choice(values) for name, values in FACTORS.items()} | dict(pair) for _ in range(tries)]
        best = max(filter(_possible, drawn), key=lambda choice: len(_pairs(choice) & open_pairs.keys()), default=None)
        if best is None:
            del open_pairs[pair]
            continue
        choices.append(best)
        for covered in _pairs(best):
            open_pairs.pop(covered, None)
    return choices


def _block_name(block: int) -> str:
    """A block size as it appears in a pattern's name."""
    return {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}.get(block, f"b{block}")


def _build_consumer(name: str, consumer: Consumer, weight: Weight, rank: int) -> onnx.ModelProto:
    """The model of one choice."""
    draft = Draft(name)
    consumer(draft, weight, rank)
    return draft.model()


def _consumed(consumer: str, weight: Weight, rank: int = 2, **rest: Any) -> Pattern:
    """The pattern of one choice."""
    parts = [consumer, weight.element, "zp" if weight.zero != "none" else "sym", _block_name(weight.block)]
    name = "-".join([*parts, weight.scale, f"{weight.k}x{weight.n}", f"A{rank}d"])
    build = partial(_build_consumer, name, CONSUMERS[consumer], weight, rank)
    precision: Precision = "float16" if weight.scale == "float16" else "float"
    stays, bias = int(consumer == "dq-is-output"), consumer in WITH_BIAS
    # Not every release's kernel takes a block above 256: there a reason is as right as re-blocking.
    expects: Expectation = "either" if weight.block > LARGEST_BLOCK else "fused"
    return Pattern(name, build, expects, 2, precision=precision, stays=stays, bias=bias, **rest)


def _group_2_cover() -> Iterator[Pattern]:
    """The pairwise cover, then each type with and without zero points on the two main layouts."""
    seen: set[str] = set()
    drawn: Counter[str] = Counter()
    for choice in _pairwise():
        k, n = choice["shape"]
        weight = Weight(choice["element"], k, n, choice["block"], choice["zero"], choice["scale"])
        pattern = _consumed(choice["consumer"], weight, choice["rank"], quick=drawn[choice["consumer"]] < QUICK_EACH)
        drawn[choice["consumer"]] += 1
        seen.add(pattern.name)
        yield pattern
    zeros: tuple[Zero, ...] = ("none", "random")
    for consumer in ("matmul", "transpose-matmul"):
        for element in FACTORS["element"]:
            for zero in zeros:
                pattern = _consumed(consumer, Weight(element, zero=zero))
                if pattern.name not in seen:
                    yield pattern


# Patterns written by hand

_BY_HAND: list[Pattern] = []


def _pattern(
    expects: Expectation, since: int, note: str, **rest: Any
) -> Callable[[Callable[[Draft], None]], Callable[[Draft], None]]:
    """Adds the decorated drawing to the catalogue, under its name."""

    def add(draw: Callable[[Draft], None]) -> Callable[[Draft], None]:
        _add(draw.__name__.strip("_").replace("_", "-"), draw, expects, since, note, **rest)
        return draw

    return add


def _add(name: str, draw: Callable[[Draft], None], expects: Expectation, since: int, note: str, **rest: Any) -> None:
    """Adds a drawing to the catalogue."""
    opset = rest.pop("opset", 21)

    def build() -> onnx.ModelProto:
        draft = Draft(name, opset=opset)
        draw(draft)
        return draft.model()

    _BY_HAND.append(Pattern(name, build, expects, since, note, **rest))


_fused_2 = partial(_pattern, "fused", 2)
_fused_3 = partial(_pattern, "fused", 3)
_either_3 = partial(_pattern, "either", 3)
_reason_2 = partial(_pattern, "reason", 2)
_reason_3 = partial(_pattern, "reason", 3)


# Group 2: traps


@_fused_2("a second consumer of the product: the Add must stay", quick=True)
def _matmul_add_product_also_output(d: Draft) -> None:
    _matmul_add(d, Weight(), 2)
    d.output("h", [ROWS, 64])


@_fused_2("the bias broadcasts the product: [2, 1, N] must not be folded", quick=True)
def _matmul_add_raising_rank(d: Draft) -> None:
    w = Weight()
    d.input("x", [ROWS, w.k])
    d.output("y", [2, ROWS, w.n])
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("Add", ["h", _bias(d, w, [2, 1, w.n])], "y")


@_fused_2("N = 1 and a bias of 5: the Add widens the product and must stay", quick=True)
def _matmul_add_widening(d: Draft) -> None:
    w = Weight(n=1)
    d.input("x", [ROWS, w.k])
    d.output("y", [ROWS, 5])
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("Add", ["h", _bias(d, w, [5])], "y")


def _matmul_add_shaped(d: Draft, shape: Sequence[int]) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.node("Add", ["h", _bias(d, Weight(), shape)], "y")


for _shape in ([], [1], [1, 64]):
    _label = "x".join(map(str, _shape)) or "scalar"
    _draw = partial(_matmul_add_shaped, shape=_shape)
    _add(f"matmul-add-bias-{_label}", _draw, "fused", 2, "a bias of another shape, folded or left as an Add")


def _add_gelu(d: Draft, lead: Sequence[Dim], product: str) -> None:
    d.input("x", [*lead, 128])
    d.output("y", [*lead, 64])
    d.node(product, ["x", d.weight(Weight())], "h", domain=MS if product == "FusedMatMul" else "")
    d.node("Gelu", [d.node("Add", ["h", _bias(d, Weight())], "a")], "y")


_gelus: tuple[tuple[str, Sequence[Dim], str], ...] = (
    ("gelu-1d", [], "MatMul"),
    ("gelu-2d", [ROWS], "MatMul"),
    ("gelu-3d", [2, ROWS], "MatMul"),
    ("gelu-3d-fixed", [2, 5], "MatMul"),
    ("gemm-gelu", [ROWS], "Gemm"),
    ("fused-matmul-gelu", [2, ROWS], "FusedMatMul"),
)
for _name, _lead, _product in _gelus:
    _draw = partial(_add_gelu, lead=_lead, product=_product)
    _add(f"matmul-add-{_name}", _draw, "fused", 2, "ONNX Runtime puts the bias into one or the other", quick=True)


@_fused_2("the second summand is no constant")
def _matmul_add_residual(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.input("r", [ROWS, 64])
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.node("Add", ["h", "r"], "y")


@_fused_2("two products added: neither is a bias", fusions=2)
def _matmul_add_matmul(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.node("MatMul", ["x", d.weight(Weight(), "v")], "g")
    d.node("Add", ["h", "g"], "y")


@_fused_2("a bias that is also a graph input can be overridden", quick=True)
def _matmul_add_overridable_bias(d: Draft) -> None:
    _matmul_add(d, Weight(), 2)
    d.input("bias", [64])


@_fused_2("Gemm's third input is there but empty")
def _gemm_empty_bias(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("Gemm", ["x", d.weight(replace(Weight(), n_major=True)), ""], "y", transB=1)


@_fused_2("DequantizeLinear's third input is there but empty", quick=True)
def _empty_zero_point(d: Draft) -> None:
    _matmul(d, Weight(zero="none"), 2)
    d.nodes[0].input.append("")


@_fused_2("axis = -2 on [K, N]")
def _negative_axis(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight(), axis=-2)], "y")


@_fused_2("per-channel with axis = -1 and an explicit block_size = 0")
def _negative_axis_per_channel(d: Draft) -> None:
    w = Weight("int8", block=PER_CHANNEL)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w, axis=-1, block_size=0)], "y")


@_fused_2("no axis attribute: 1 is the default")
def _default_axis_transposed(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", _n_major(d, Weight())], "y")
    (dequantize,) = (node for node in d.nodes if node.op_type == "DequantizeLinear")
    del dequantize.attribute[[a.name for a in dequantize.attribute].index("axis")]


@_fused_2("a Transpose without perm")
def _transpose_default_perm(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("Transpose", [d.weight(Weight(n_major=True))], "t")
    d.node("MatMul", ["x", "t"], "y")


@_fused_2("nodes without names")
def _unnamed_nodes(d: Draft) -> None:
    _transpose_matmul(d, Weight(), 2)
    for node in d.nodes:
        node.name = ""


@_fused_2("negative scales are allowed")
def _negative_scales(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight(), scale_range=(-0.03, 0.03))], "y")


@_fused_2("a per-tensor scale of shape [1]", quick=True)
def _per_tensor_scale_vector(d: Draft) -> None:
    w = Weight("uint8", block=PER_TENSOR)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w, scale_shape=[1])], "y")


@_fused_2("a per-tensor scale in a Constant node's value_float")
def _constant_value_float(d: Draft) -> None:
    w = Weight("int8")
    _ends(d, w, 2)
    d.quantized("w", w.element, w.shape)
    d.node("Constant", [], "s", value_float=0.02)
    d.node("DequantizeLinear", ["w", "s"], "w_d")
    d.node("MatMul", ["x", "w_d"], "y")


@_fused_2("a block larger than K", quick=True)
def _block_above_k(d: Draft) -> None:
    _matmul(d, Weight(k=40, block=64), 2)


@_fused_2("three layers, as many layouts, one after the other", fusions=3, bias=True, quick=True)
def _three_layers(d: Draft) -> None:
    d.input("x", [ROWS, 96])
    d.output("y", [ROWS, 32])
    one, two, three = (
        Weight(k=96, n=128),
        Weight("int4", 128, 64, n_major=True),
        Weight("int8", 64, 32, PER_CHANNEL),
    )
    d.node("MatMul", ["x", d.weight(one, "w1")], "h1")
    d.node("Gemm", ["h1", d.weight(two, "w2"), d.floats("bias", [64])], "h2", transB=1)
    d.node("Relu", ["h2"], "h3")
    d.node("MatMul", ["h3", d.weight(three, "w3")], "y")


def _overridable(d: Draft, name: str, weight: Weight) -> None:
    _matmul(d, weight, 2)
    (tensor,) = (t for t in d.initializers if t.name == name)
    d.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


_OVERRIDABLE: tuple[tuple[str, str, Expectation], ...] = (
    ("scale", "w_s", "reason"),
    ("zero-point", "w_z", "reason"),
    ("weight", "w", "unfused"),
)
for _label, _input, _expects in _OVERRIDABLE:
    _draw = partial(_overridable, name=_input, weight=Weight("uint8", block=PER_CHANNEL))
    _add(f"overridable-{_label}", _draw, _expects, 2, "an initializer that is also a graph input", quick=True)


@_pattern("unfused", 2, "the weight is a graph input")
def _weight_is_input(d: Draft) -> None:
    w = Weight("uint8", block=PER_TENSOR)
    _ends(d, w, 2)
    d.input("w", w.shape, "uint8")
    d.node("DequantizeLinear", ["w", d.floats("s", [])], "w_d")
    d.node("MatMul", ["x", "w_d"], "y")


@_reason_2("the zero points are a graph input")
def _zero_point_is_input(d: Draft) -> None:
    w = Weight("uint8", block=PER_TENSOR)
    _ends(d, w, 2)
    d.input("z", [], "uint8")
    d.node("DequantizeLinear", [d.quantized("w", "uint8", w.shape), d.floats("s", []), "z"], "w_d")
    d.node("MatMul", ["x", "w_d"], "y")


@_reason_2("no MatMul: DQ -> Add")
def _dq_add(d: Draft) -> None:
    d.input("x", [ROWS, 64])
    d.output("y", [ROWS, 64])
    d.dequantize("w", [1, 64], axis=1, element="uint8", block=32)
    d.node("Add", ["x", "w_d"], "y")


@_reason_2("a scale per row of [K, N]: no block along K shares one", quick=True)
def _per_row(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.dequantize("w", [128, 64], axis=0, block=PER_CHANNEL, element="int8")], "y")


@_reason_2("the same, N-major: a scale per column of [N, K]")
def _per_row_transposed(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.dequantize("w", [64, 128], axis=1, block=PER_CHANNEL, element="int8")
    d.node("MatMul", ["x", d.node("Transpose", ["w_d"], "t", perm=[1, 0])], "y")


@_reason_2("blocks along N of [K, N]", quick=True)
def _blocks_along_n(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.dequantize("w", [128, 64], axis=1)], "y")


@_reason_2("blocks along N of [N, K]")
def _blocks_along_n_gemm(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("Gemm", ["x", d.dequantize("w", [64, 128], axis=0)], "y", transB=1)


@_reason_2("16 bits: MatMulNBits has no such kernel")
def _sixteen_bits(d: Draft) -> None:
    _matmul(d, Weight("uint16", zero="none"), 2)


# Group 3: shared


@_fused_3("one DQ, two MatMuls", fusions=2, quick=True)
def _shared_dq(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("MatMul", ["h", "w_d"], "y")


@_fused_3("one N-major DQ and one Transpose, two MatMuls", fusions=2)
def _shared_transpose(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", _n_major(d, w)], "h")
    d.node("MatMul", ["h", "t"], "y")


@_fused_3("one N-major DQ: Gemm(transB=1) and Transpose -> MatMul", fusions=2)
def _shared_gemm_and_matmul(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", _n_major(d, w)], "h")
    d.node("Gemm", ["h", "w_d"], "y", transB=1)


@_fused_3("one weight, two DQs", fusions=2, quick=True)
def _two_dqs_one_weight(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("DequantizeLinear", ["w", "w_s", "w_z"], "v_d", axis=0, block_size=w.block)
    d.node("MatMul", ["h", "v_d"], "y")


@_fused_3("one weight under two sets of scales", fusions=2)
def _two_scales_one_weight(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("DequantizeLinear", ["w", d.floats("v_s", [4, 128])], "v_d", axis=0, block_size=w.block)
    d.node("MatMul", ["h", "v_d"], "y")


@_fused_3("a DQ that a MatMul and an Add consume: the MatMul is fused, the DQ stays", stays=1)
def _shared_with_add(d: Draft) -> None:
    w = Weight()
    _ends(d, w, 2)
    d.input("r", list(w.shape))
    d.node("MatMul", ["x", d.weight(w)], "y")
    d.output(d.node("Add", ["r", "w_d"], "y2"), w.shape)


@_fused_3("the stored weight has another reader: it must not be dropped", quick=True)
def _weight_also_read(d: Draft) -> None:
    w = Weight("uint8")
    _matmul(d, w, 2)
    d.output(d.node("Cast", ["w"], "y2", to=TensorProto.FLOAT), w.shape)


@_fused_3("two weights with the same bytes", fusions=2)
def _duplicate_weights(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    for tensor in list(d.initializers):
        twin = TensorProto()
        twin.CopyFrom(tensor)
        twin.name += "2"
        d.initializers.append(twin)
    d.node("DequantizeLinear", ["w2", "w_s2", "w_z2"], "v_d", axis=0, block_size=w.block)
    d.node("MatMul", ["h", "v_d"], "y")


# Group 3: chains


def _cast(d: Draft, value: str, to: str, output: str = "c") -> str:
    return d.node("Cast", [value], output, to=FLOATS[to])


def _cast_chain(d: Draft, weight: Weight, to: str, consumer: str) -> None:
    d.input("x", [ROWS, weight.k], to)
    d.output("y", [ROWS, weight.n], to)
    if consumer == "matmul":
        d.node("MatMul", ["x", _cast(d, d.weight(weight), to)], "y")
    elif consumer == "transpose-cast":
        d.node("MatMul", ["x", _cast(d, _n_major(d, weight), to)], "y")
    elif consumer == "cast-transpose":
        _cast(d, d.weight(replace(weight, n_major=True)), to)
        d.node("MatMul", ["x", d.node("Transpose", ["c"], "t", perm=[1, 0])], "y")
    else:
        _cast(d, d.weight(replace(weight, n_major=True)), to)
        d.node("Gemm", ["x", "c", d.floats("bias", [weight.n], to)], "y", transB=1)


for _consumer in ("matmul", "transpose-cast", "cast-transpose", "gemm"):
    _draw = partial(_cast_chain, weight=Weight(scale="float16"), to="float", consumer=_consumer)
    _quick = _consumer in ("matmul", "gemm")
    _add(
        f"cast-f16-to-f32-{_consumer}",
        _draw,
        "fused",
        3,
        "float16 scales, float model",
        precision="float16",
        quick=_quick,
    )
for _element in ("int4", "uint8", "int8"):
    _draw = partial(_cast_chain, weight=Weight(_element, zero="none", scale="float16"), to="float", consumer="matmul")
    _add(f"cast-f16-to-f32-{_element}", _draw, "fused", 3, "float16 scales, float model", precision="float16")
_draw = partial(_cast_chain, weight=Weight(), to="float16", consumer="matmul")
_add("cast-f32-to-f16-matmul", _draw, "fused", 3, "float scales, float16 model", precision="float16")
_draw = partial(_cast_chain, weight=Weight(scale="bfloat16"), to="float", consumer="matmul")
_add("cast-bf16-to-f32-matmul", _draw, "either", 3, "bfloat16 scales, float model", precision="bfloat16")


@_fused_3("an Identity behind the DQ and one before it")
def _identity(d: Draft) -> None:
    w = Weight("uint8")
    _ends(d, w, 2)
    d.quantized("w0", w.element, w.shape)
    d.node("Identity", ["w0"], "w")
    d.node("DequantizeLinear", ["w", d.floats("s", [4, w.n])], "w_d", axis=0, block_size=w.block)
    d.node("MatMul", ["x", d.node("Identity", ["w_d"], "i")], "y")


@_fused_3("DequantizeLinear's own output_dtype: float16 scales, float result", opset=23, precision="float16")
def _output_dtype(d: Draft) -> None:
    w = Weight(scale="float16")
    d.input("x", [ROWS, w.k])
    d.output("y", [ROWS, w.n])
    d.node("MatMul", ["x", d.weight(w, output_dtype=TensorProto.FLOAT)], "y")


def _blocked(d: Draft, weight: Weight, *, cast: bool = False, transpose_first: bool = False, gemm: bool = False) -> None:
    """A weight stored as [N, blocks, block], brought to [K, N]."""
    w, blocks = weight, weight.k // weight.block
    kind = "float" if cast else w.scale
    d.input("x", [ROWS, w.k], kind)
    d.output("y", [ROWS, w.n], kind)
    value = d.dequantize("w", [w.n, blocks, w.block], axis=2, block=w.block, element=w.element, zero=w.zero, scale=w.scale)
    if gemm:
        d.node("Gemm", ["x", d.node("Reshape", [value, d.ints("to", [w.n, w.k])], "r")], "y", transB=1)
        return
    if transpose_first:
        value = d.node("Transpose", [value], "t", perm=[1, 2, 0])
        value = d.node("Reshape", [value, d.ints("to", [w.k, w.n])], "r")
    else:
        value = d.node("Reshape", [value, d.ints("to", [w.n, -1])], "r")
        value = d.node("Transpose", [value], "t", perm=[1, 0])
    d.node("MatMul", ["x", _cast(d, value, "float") if cast else value], "y")


for _element in ("uint4", "int4", "uint8"):
    for _zero in ("none", "random"):
        _name = f"reshape-transpose-{_element}-{'sym' if _zero == 'none' else 'zp'}"
        _draw = partial(_blocked, weight=Weight(_element, zero=_zero))
        _add(_name, _draw, "fused", 3, "[N, blocks, block]", quick=_element == "uint4")
_draw = partial(_blocked, weight=Weight(scale="float16"), cast=True)
_add(
    "reshape-transpose-cast",
    _draw,
    "fused",
    3,
    "[N, blocks, block], float16 scales",
    precision="float16",
    quick=True,
)
_add(
    "transpose-reshape",
    partial(_blocked, weight=Weight(), transpose_first=True),
    "fused",
    3,
    "[N, blocks, block]",
)
_add("reshape-gemm-transB", partial(_blocked, weight=Weight(), gemm=True), "fused", 3, "[N, blocks, block]")


def _lead_ends(d: Draft, w: Weight) -> None:
    d.input("x", [4, ROWS, w.k])
    d.output("y", [4, ROWS, w.n])


@_fused_3("a [1, K, N] weight", quick=True)
def _lead_1(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.node("MatMul", ["x", d.dequantize("w", [1, 128, 64], axis=1)], "y")


@_fused_3("a [1, N, K] weight behind Transpose(0, 2, 1)")
def _lead_1_transpose(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.dequantize("w", [1, 64, 128], axis=2)
    d.node("MatMul", ["x", d.node("Transpose", ["w_d"], "t", perm=[0, 2, 1])], "y")


@_fused_3("a [1, N, K] weight, Squeeze, Transpose")
def _squeeze(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.dequantize("w", [1, 64, 128], axis=2)
    d.node("Squeeze", ["w_d", d.ints("axes", [0])], "q")
    d.node("MatMul", ["x", d.node("Transpose", ["q"], "t", perm=[1, 0])], "y")


@_fused_3("Unsqueeze to [1, K, N]")
def _unsqueeze(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.node("MatMul", ["x", d.node("Unsqueeze", [d.weight(Weight()), d.ints("axes", [0])], "u")], "y")


@_fused_3("Reshape to [1, K, N]")
def _reshape_lead(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.node("MatMul", ["x", d.node("Reshape", [d.weight(Weight()), d.ints("to", [1, 128, 64])], "r")], "y")


@_fused_3("the weight's leading one raises the product's rank: x [m, K], w [1, K, N], y [1, m, N]")
def _lead_1_raising_rank(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [1, ROWS, 64])
    d.node("MatMul", ["x", d.dequantize("w", [1, 128, 64], axis=1)], "y")


@_reason_3("a Reshape that mixes rows", quick=True)
def _reshape_mixing(d: Draft) -> None:
    d.input("x", [ROWS, 64])
    d.output("y", [ROWS, 128])
    d.node("MatMul", ["x", d.node("Reshape", [d.weight(Weight()), d.ints("to", [64, 128])], "r")], "y")


@_reason_3("a square weight, transposed twice over: blocks run along N")
def _transpose_square(d: Draft) -> None:
    w = Weight(n=128)
    _ends(d, w, 2)
    d.node("MatMul", ["x", d.node("Transpose", [d.weight(w)], "t", perm=[1, 0])], "y")


# Group 3: Gemm


def _gemm_with(
    d: Draft,
    *,
    trans_b: bool = False,
    trans_a: bool = False,
    bias: Sequence[int] | None = (64,),
    alpha: float = 1.0,
    beta: float = 1.0,
) -> None:
    w = Weight(n_major=trans_b)
    d.input("x", [w.k, ROWS] if trans_a else [ROWS, w.k])
    d.output("y", [ROWS, w.n])
    inputs = ["x", d.weight(w)] + ([] if bias is None else [_bias(d, w, bias)])
    d.node("Gemm", inputs, "y", transA=int(trans_a), transB=int(trans_b), alpha=alpha, beta=beta)


for _b in (False, True):
    _suffix = "-transB" if _b else ""
    for _name, _rest in (
        ("alpha", {"alpha": 0.5, "bias": None}),
        ("beta", {"beta": 2.0}),
        ("alpha-beta", {"alpha": 0.3, "beta": 0.7}),
        ("beta-0", {"beta": 0.0}),
        ("transA", {"trans_a": True}),
        ("bias-1xN", {"bias": (1, 64)}),
        ("bias-scalar", {"bias": ()}),
        ("bias-1", {"bias": (1,)}),
    ):
        _expects = "either" if _name == "transA" else "fused"
        _draw = partial(_gemm_with, trans_b=_b, **_rest)
        _quick = _name in ("alpha-beta", "bias-1xN")
        _add(f"gemm-{_name}{_suffix}", _draw, _expects, 3, "Gemm's attributes and biases", quick=_quick)


@_fused_3("a bias with a scale per row is no [N] bias")
def _gemm_bias_column(d: Draft) -> None:
    w = Weight()
    d.input("x", [5, w.k])
    d.output("y", [5, w.n])
    d.node("Gemm", ["x", d.weight(w), _bias(d, w, [5, 1])], "y")


@_fused_3("a bias that is computed")
def _gemm_bias_input(d: Draft) -> None:
    w = Weight(n_major=True)
    _ends(d, w, 2)
    d.input("c", [w.n])
    d.node("Gemm", ["x", d.weight(w), "c"], "y", transB=1)


@_fused_3("a bias that is dequantized, per tensor, from int32", quick=True)
def _gemm_bias_dq(d: Draft) -> None:
    w = Weight(n_major=True)
    _ends(d, w, 2)
    d.dequantize("b", [w.n], axis=0, block=PER_TENSOR, element="int32", zero="none")
    d.node("Gemm", ["x", d.weight(w), "b_d"], "y", transB=1)


@_fused_3("a bias that is dequantized, per tensor, from int8, behind a MatMul")
def _matmul_add_bias_dq(d: Draft) -> None:
    _ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.dequantize("b", [64], axis=0, block=PER_TENSOR, element="int8")
    d.node("Add", ["h", "b_d"], "y")


@_either_3("FusedMatMul with alpha")
def _fusedmatmul_alpha(d: Draft) -> None:
    w = Weight(n_major=True)
    _ends(d, w, 2)
    d.node("FusedMatMul", ["x", d.weight(w)], "y", domain=MS, transB=1, alpha=0.25)


@_either_3("FusedMatMul with transA")
def _fusedmatmul_trans_a(d: Draft) -> None:
    d.input("x", [128, ROWS])
    d.output("y", [ROWS, 64])
    d.node("FusedMatMul", ["x", d.weight(Weight())], "y", domain=MS, transA=1)


# Group 3: blocks that MatMulNBits lacks

_ODD_BLOCKS: tuple[tuple[int, int, Expectation], ...] = (
    (8, 128, "either"),
    (48, 144, "fused"),
    (96, 192, "fused"),
    (80, 200, "fused"),
    (192, 192, "fused"),
    (100, 100, "fused"),
    (20, 120, "reason"),
)
for _block, _k, _expects in _ODD_BLOCKS:
    for _n_major_too in (False, True):
        _name = f"block-{_block}-of-{_k}{'-n-major' if _n_major_too else ''}"
        _draw = partial(_transpose_matmul if _n_major_too else _matmul, w=Weight(k=_k, block=_block), rank=2)
        _note = "K as one block" if _block == _k else "no power of two"
        _add(_name, _draw, _expects, 3, _note, quick=_block in (48, 100) and not _n_major_too)
_draw = partial(_matmul, w=Weight("int8", block=8, zero="none"), rank=2)
_add("block-8-int8", _draw, "either", 3, "below the smallest block")
_draw = partial(_matmul, w=Weight("uint2", k=144, block=48), rank=2)
_add("block-48-uint2", _draw, "either", 3, "scales weigh as much as the weights")


# Group 3: embeddings


def _gather(d: Draft, *, ids: Sequence[Dim] = (ROWS,), cast: bool = False, **rest: Any) -> None:
    """An embedding table of [64, 128]."""
    kind = rest.get("scale", "float")
    d.input("x", ids, "int64")
    d.dequantize("w", [64, 128], **({"axis": 1} | rest))
    d.node("Gather", ["w_d", "x"], "h" if cast else "y")
    if cast:
        _cast(d, "h", "float", "y")
    d.output("y", [*ids, 128], "float" if cast else kind)


for _element in ("uint4", "int4", "uint8", "int8"):
    for _zero in ("none", "random"):
        _name = f"gather-{_element}-{'sym' if _zero == 'none' else 'zp'}"
        _expects = "either" if _element.endswith("int8") else "fused"
        _draw = partial(_gather, element=_element, zero=_zero)
        _add(_name, _draw, _expects, 3, "block-wise on the last axis", quick=_element == "uint4")
_add("gather-ids-2d", partial(_gather, ids=(2, ROWS)), "fused", 3, "")
_add("gather-axis-1", partial(_gather, axis=-1), "fused", 3, "axis = -1")
_add("gather-block-128", partial(_gather, block=128), "fused", 3, "a scale per row, as a block")
_add("gather-block-48", partial(_gather, block=48), "either", 3, "no power of two")
_add("gather-float16", partial(_gather, scale="float16"), "fused", 3, "", precision="float16")
_add("gather-float16-cast", partial(_gather, scale="float16", cast=True), "fused", 3, "", precision="float16")
_add("gather-uint2", partial(_gather, element="uint2"), "either", 3, "")
_add("gather-per-row", partial(_gather, axis=0, block=PER_CHANNEL), "either", 3, "a scale per row", quick=True)
_add("gather-per-tensor", partial(_gather, block=PER_TENSOR), "either", 3, "one scale")
_add("gather-blocks-along-rows", partial(_gather, axis=0), "either", 3, "blocks along the vocabulary")


@_either_3("Gather along the columns")
def _gather_columns(d: Draft) -> None:
    d.input("x", [ROWS], "int64")
    d.node("Gather", [d.dequantize("w", [128, 64], axis=0), "x"], "y", axis=1)
    d.output("y", [128, ROWS])


def _tied(d: Draft, *, two_dqs: bool) -> None:
    """An embedding table that is the output head too."""
    d.input("x", [ROWS], "int64")
    d.dequantize("w", [64, 128], axis=1)
    d.node("Gather", ["w_d", "x"], "h")
    if two_dqs:
        d.node("DequantizeLinear", ["w", "w_s", "w_z"], "v_d", axis=1, block_size=32)
    d.node("Transpose", ["v_d" if two_dqs else "w_d"], "t", perm=[1, 0])
    d.node("MatMul", ["h", "t"], "y")
    d.output("y", [ROWS, 64])


_add(
    "tied-one-dq",
    partial(_tied, two_dqs=False),
    "fused",
    3,
    "embedding and head on one weight",
    fusions=2,
    quick=True,
)
_add("tied-two-dqs", partial(_tied, two_dqs=True), "fused", 3, "embedding and head on one weight", fusions=2)


# Group 3: on the left, and batched


def _left(d: Draft, columns: Dim) -> None:
    d.input("x", [128, columns])
    d.output("y", [64, columns])
    d.node("MatMul", [d.dequantize("w", [64, 128], axis=1), "x"], "y")


_add("left-static", partial(_left, columns=6), "either", 3, "W x, static", quick=True)
_add("left-dynamic", partial(_left, columns=ROWS), "either", 3, "W x, dynamic")


@_either_3("Gemm with the weight on the left, transposed")
def _left_gemm(d: Draft) -> None:
    d.input("x", [128, 6])
    d.output("y", [64, 6])
    d.node("Gemm", [d.dequantize("w", [128, 64], axis=0), "x"], "y", transA=1)


def _batched(d: Draft, *, transposed: bool) -> None:
    d.input("x", [4, ROWS, 128])
    d.output("y", [4, ROWS, 64])
    value = d.dequantize("w", [4, 64, 128] if transposed else [4, 128, 64], axis=2 if transposed else 1)
    if transposed:
        value = d.node("Transpose", [value], "t", perm=[0, 2, 1])
    d.node("MatMul", ["x", value], "y")


_add("batched", partial(_batched, transposed=False), "either", 3, "[4, K, N], one weight a batch", quick=True)
_add("batched-transpose", partial(_batched, transposed=True), "either", 3, "[4, N, K], one weight a batch")


# Group 3: subgraphs


def _branch(d: Draft, prefix: str, weight: Weight | None, dequantized: str, factor: float) -> onnx.GraphProto:
    """A body that multiplies the outer `x` by a weight of its own (or by the outer value `dequantized`), times a factor."""
    b = Draft("", parent=d, opset=d.opset)
    value = b.weight(weight) if weight else dequantized
    b.node("MatMul", ["x", value], f"{prefix}_h")
    b.constant(_tensor("factor", TensorProto.FLOAT, [], np.float32(factor).tobytes()))
    b.output(b.node("Mul", [f"{prefix}_h", "factor"], f"{prefix}_y"), [ROWS, 64])
    d.opset = max(d.opset, b.opset)
    return b.graph(prefix)


def _outer_branch(d: Draft, prefix: str, w: Weight, factor: float) -> onnx.GraphProto:
    """A body with a DequantizeLinear of its own on the outer graph's constants."""
    b = Draft("", parent=d)
    attributes: dict[str, Any] = {"axis": w.axis, "block_size": w.block}
    value = b.node("DequantizeLinear", ["w", "w_s", "w_z"], f"{prefix}_d", **attributes)
    if w.n_major:
        value = b.node("Transpose", [value], f"{prefix}_t", perm=[1, 0])
    b.node("MatMul", ["x", value], f"{prefix}_h")
    b.constant(_tensor(f"{prefix}_factor", TensorProto.FLOAT, [], np.float32(factor).tobytes()))
    b.output(b.node("Mul", [f"{prefix}_h", f"{prefix}_factor"], f"{prefix}_y"), [ROWS, 64])
    return b.graph(prefix)


def _if_ends(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.input("cond", [], "bool")
    d.output("y", [ROWS, 64])


@_fused_3("weights inside the branches, under the same names", fusions=2, quick=True)
def _if_own_weights(d: Draft) -> None:
    _if_ends(d)
    one, two = _branch(d, "then", Weight(), "", 1.0), _branch(d, "else", Weight("int8"), "", 2.0)
    d.node("If", ["cond"], "y", then_branch=one, else_branch=two)


def _if_outer(d: Draft, *, constant_nodes: bool = False, n_major: bool = False) -> None:
    _if_ends(d)
    w = Weight(n_major=n_major)
    d.constant_nodes = constant_nodes
    d.weight(w)
    d.nodes.pop()
    one, two = _outer_branch(d, "then", w, 1.0), _outer_branch(d, "else", w, 2.0)
    d.node("If", ["cond"], "y", then_branch=one, else_branch=two)


_note = "DQ and MatMul in the branches, weights outside: stock fails to load it"
_add("if-outer-weights", partial(_if_outer), "fused", 3, _note, fusions=2, quick=True)
_note = "DQ, Transpose and MatMul in the branches, weights outside"
_add("if-outer-weights-n-major", partial(_if_outer, n_major=True), "fused", 3, _note, fusions=2)
_add(
    "if-outer-constant-nodes",
    partial(_if_outer, constant_nodes=True),
    "fused",
    3,
    "Constant nodes outside",
    fusions=2,
)


@_fused_3("the DQ outside, a MatMul in each branch", fusions=2)
def _if_outer_dq(d: Draft) -> None:
    _if_ends(d)
    d.weight(Weight())
    one, two = _branch(d, "then", None, "w_d", 1.0), _branch(d, "else", None, "w_d", 2.0)
    d.node("If", ["cond"], "y", then_branch=one, else_branch=two)


@_fused_3("an If in an If, weights outside both", fusions=3)
def _if_nested(d: Draft) -> None:
    _if_ends(d)
    d.weight(Weight())
    d.nodes.pop()
    inner = Draft("", parent=d)
    one, two = _outer_branch(inner, "one", Weight(), 1.0), _outer_branch(inner, "two", Weight(), 2.0)
    inner.output(inner.node("If", ["cond"], "inner_y", then_branch=one, else_branch=two), [ROWS, 64])
    other = Draft("", parent=d)
    other.dequantize("v", [128, 64], axis=0)
    other.output(other.node("MatMul", ["x", "v_d"], "other_y"), [ROWS, 64])
    d.node("If", ["cond"], "y", then_branch=inner.graph("inner"), else_branch=other.graph("other"))


def _loop(d: Draft, *, outer: bool) -> None:
    """Three rounds of h = h W."""
    w = Weight(n=128)
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 128])
    d.ints("rounds", [3])
    d.constant(_tensor("go", TensorProto.BOOL, [], b"\x01"))
    body = Draft("", parent=d)
    body.input("i", [], "int64")
    body.input("go_in", [], "bool")
    body.input("h", [ROWS, 128])
    (d if outer else body).weight(w)
    if outer:
        body.nodes.append(d.nodes.pop())
    body.node("Identity", ["go_in"], "go_out")
    body.outputs.append(helper.make_tensor_value_info("go_out", TensorProto.BOOL, []))
    body.output(body.node("MatMul", ["h", "w_d"], "h_out"), [ROWS, 128])
    d.node("Loop", ["rounds", "go", "x"], "y", body=body.graph("body"))


_add("loop-own-weights", partial(_loop, outer=False), "fused", 3, "the weight inside the body", quick=True)
_add("loop-outer-weights", partial(_loop, outer=True), "fused", 3, "the weight outside, the DQ inside")


@_fused_3("a Scan over the rows, the weight inside")
def _scan(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    body = Draft("", parent=d)
    body.input("row", [128])
    body.output(body.node("MatMul", ["row", body.weight(Weight())], "out"), [64])
    d.node("Scan", ["x"], "y", body=body.graph("body"), num_scan_inputs=1)


# Group 3: model-local functions


def _function(
    name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto], attributes: Sequence[str] = ()
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    function: onnx.FunctionProto = helper.make_function("local", name, inputs, ["out"], nodes, imports, list(attributes))
    return function


def _linear(d: Draft, name: str, weight: Weight) -> list[str]:
    """The constants of one call of the function `Linear`."""
    d.weight(weight, name)
    d.nodes.pop()
    return [name, f"{name}_s", f"{name}_z"]


@_fused_3("DQ and MatMul in a function that is called twice, its weights passed in", fusions=2, quick=True)
def _function_called_twice(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    body = Draft("", parent=d)
    body.node("DequantizeLinear", ["w", "s", "z"], "d", axis=0, block_size=32)
    body.node("MatMul", ["a", "d"], "out")
    d.functions.append(_function("Linear", ["a", "w", "s", "z"], body.nodes))
    d.node("Linear", ["x", *_linear(d, "w1", Weight(n=128))], "h", domain="local")
    d.node("Linear", ["h", *_linear(d, "w2", Weight())], "y", domain="local")


@_fused_3("the weights are Constant nodes of the function")
def _function_constants(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    body = Draft("", parent=d)
    body.constant_nodes = True
    body.node("MatMul", ["a", body.weight(Weight())], "out")
    d.functions.append(_function("Linear", ["a"], body.nodes))
    d.node("Linear", ["x"], "y", domain="local")


@_fused_3("a function in a function, and the block size an attribute of the call")
def _function_nested(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    inner = Draft("", parent=d)
    inner.node("DequantizeLinear", ["w", "s", "z"], "d", axis=1)
    block = onnx.AttributeProto(name="block_size", ref_attr_name="block", type=onnx.AttributeProto.INT)
    inner.nodes[0].attribute.append(block)
    inner.node("Transpose", ["d"], "out", perm=[1, 0])
    outer = Draft("", parent=d)
    outer.node("Dequantized", ["w", "s", "z"], "t", domain="local", block=32)
    outer.node("MatMul", ["a", "t"], "out")
    d.functions.append(_function("Dequantized", ["w", "s", "z"], inner.nodes, ["block"]))
    d.functions.append(_function("Linear", ["a", "w", "s", "z"], outer.nodes))
    d.node("Linear", ["x", *_linear(d, "w", Weight("uint8", n_major=True))], "y", domain="local")


@_fused_3("only the DequantizeLinear is in the function")
def _function_dq_only(d: Draft) -> None:
    _ends(d, Weight(), 2)
    body = Draft("", parent=d)
    body.node("DequantizeLinear", ["w", "s", "z"], "out", axis=0, block_size=32)
    d.functions.append(_function("Dequantized", ["w", "s", "z"], body.nodes))
    d.node("Dequantized", _linear(d, "w", Weight()), "w_d", domain="local")
    d.node("MatMul", ["x", "w_d"], "y")


# Group 3: float16 and bfloat16 models


def _half_layers(d: Draft, kind: str, *, n_major: bool) -> None:
    """Two layers with a Relu between, computed in `kind`, float at both ends."""
    one, two = (
        Weight(n=96, scale=kind, n_major=n_major),
        Weight("int4", 96, 64, zero="none", scale=kind, n_major=n_major),
    )
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    d.weight(one, "w1")
    d.weight(two, "w2")
    first, second = "w1_d", "w2_d"
    if n_major:
        first = d.node("Transpose", ["w1_d"], "t1", perm=[1, 0])
        second = d.node("Transpose", ["w2_d"], "t2", perm=[1, 0])
    _cast(d, "x", kind, "a")
    d.node("MatMul", ["a", first], "h1")
    d.node("Relu", ["h1"], "h2")
    d.node("MatMul", ["h2", second], "h3")
    _cast(d, "h3", "float", "y")


for _b in (False, True):
    _suffix = "-n-major" if _b else ""
    _draw = partial(_half_layers, kind="float16", n_major=_b)
    _add(f"float16-layers{_suffix}", _draw, "fused", 3, "", precision="float16", fusions=2, quick=True)
    _draw = partial(_half_layers, kind="bfloat16", n_major=_b)
    _note = "the CPU provider has no bfloat16 kernels: stock fails to load it"
    _add(f"bfloat16-layers{_suffix}", _draw, "either", 3, _note, precision="bfloat16", fusions=2, quick=True)


# Group 3: below opset 21


def _old(d: Draft, weight: Weight, *, domain: str, gemm: bool = False) -> None:
    _ends(d, weight, 2)
    value = d.weight(weight, domain=domain)
    if gemm:
        d.node("Gemm", ["x", value], "y", transB=1)
    elif weight.n_major:
        d.node("MatMul", ["x", d.node("Transpose", [value], "t", perm=[1, 0])], "y")
    else:
        d.node("MatMul", ["x", value], "y")


for _name, _weight in (
    ("int8-channel", Weight("int8", block=PER_CHANNEL, zero="none")),
    ("uint8-channel", Weight("uint8", block=PER_CHANNEL)),
    ("uint4-channel", Weight(block=PER_CHANNEL)),
    ("int4-channel", Weight("int4", block=PER_CHANNEL, zero="none")),
    ("int8-tensor", Weight("int8", block=PER_TENSOR)),
    ("uint4-tensor", Weight(block=PER_TENSOR)),
    ("uint8-channel-float16", Weight("uint8", block=PER_CHANNEL, scale="float16")),
    ("uint8-channel-n-major", Weight("uint8", block=PER_CHANNEL, n_major=True)),
    ("uint4-channel-n-major", Weight(block=PER_CHANNEL, n_major=True)),
):
    _precision: Precision = "float16" if _weight.scale == "float16" else "float"
    _draw = partial(_old, weight=_weight, domain=MS)
    _note = "com.microsoft DequantizeLinear, as ORT's quantizer writes it"
    _quick = _name in ("int8-channel", "uint4-channel-n-major")
    _add(f"opset-17-contrib-{_name}", _draw, "fused", 3, _note, precision=_precision, opset=17, quick=_quick)
_draw = partial(_old, weight=Weight("uint8", block=PER_CHANNEL, n_major=True), domain=MS, gemm=True)
_add("opset-17-contrib-gemm-transB", _draw, "fused", 3, "com.microsoft DequantizeLinear", opset=17)
_draw = partial(_old, weight=Weight(), domain=MS)
_add(
    "opset-17-contrib-blocks",
    _draw,
    "either",
    3,
    "ORT's schema has no block_size there: no valid model",
    opset=17,
)
for _opset in (13, 19):
    _draw = partial(_old, weight=Weight("int8", block=PER_CHANNEL, zero="none"), domain="")
    _add(
        f"opset-{_opset}-channel",
        _draw,
        "fused",
        2,
        "the standard DequantizeLinear before blocks",
        opset=_opset,
    )
_draw = partial(_old, weight=Weight("uint8", block=PER_TENSOR), domain="")
_add("opset-10-tensor", _draw, "fused", 2, "the first DequantizeLinear", opset=10)


# Group 3: activations quantized too


def _static(d: Draft, weight: Weight, *, quantized_result: bool, tail: bool = False) -> None:
    """x -> Q -> DQ -> MatMul [-> Q -> DQ] [-> a weight-only MatMul]."""
    d.input("x", [ROWS, weight.k])
    zero = _tensor("a_z", TensorProto.UINT8, [], b"\x80")
    scale = _tensor("a_s", TensorProto.FLOAT, [], np.float32(0.03).tobytes())
    ends = [d.constant(scale), d.constant(zero)]
    d.node("QuantizeLinear", ["x", *ends], "x_q")
    d.node("DequantizeLinear", ["x_q", *ends], "x_d")
    value = d.node("MatMul", ["x_d", d.weight(weight)], "h")
    if quantized_result:
        scale = _tensor("h_s", TensorProto.FLOAT, [], np.float32(0.5).tobytes())
        ends = [d.constant(scale), "a_z"]
        d.node("QuantizeLinear", ["h", *ends], "h_q")
        value = d.node("DequantizeLinear", ["h_q", *ends], "h_d")
    if tail:
        value = d.node("MatMul", [value, d.dequantize("v", [weight.n, 48], axis=0)], "y0")
    d.output(d.node("Identity", [value], "y"), [ROWS, 48 if tail else weight.n])


_tensor_weight = Weight("uint8", block=PER_TENSOR)
_channel_weight = Weight("int8", block=PER_CHANNEL, zero="none")
_note = "an integer kernel takes it; leave it alone"
_add(
    "static-qdq-tensor",
    partial(_static, weight=_tensor_weight, quantized_result=True),
    "reason",
    3,
    _note,
    quick=True,
)
_add("static-qdq-channel", partial(_static, weight=_channel_weight, quantized_result=True), "reason", 3, _note)
_draw = partial(_static, weight=_tensor_weight, quantized_result=False)
_add("static-qdq-input-only", _draw, "reason", 3, "MatMulIntegerToFloat takes it")
_draw = partial(_static, weight=_tensor_weight, quantized_result=True, tail=True)
_add("static-qdq-and-weight-only", _draw, "fused", 3, "only the second layer is weight-only")
_draw = partial(_static, weight=Weight(), quantized_result=False)
_add("static-qdq-4-bit-weight", _draw, "either", 3, "no integer kernel takes 4 bits in blocks")


# Group 3: default zero points

for _element in ("uint4", "int4", "uint8", "int8", "uint2"):
    _draw = partial(_matmul, w=Weight(_element, zero="default"), rank=2)
    _add(
        f"default-zero-{_element}",
        _draw,
        "fused",
        3,
        "zero points that MatMulNBits takes anyway",
        quick=_element == "uint4",
    )
_draw = partial(_transpose_matmul, w=Weight(zero="default"), rank=2)
_add("default-zero-n-major", _draw, "fused", 3, "zero points that MatMulNBits takes anyway")


PATTERNS: tuple[Pattern, ...] = tuple(sorted([*_group_2_cover(), *_BY_HAND], key=lambda pattern: pattern.since))


def quick_patterns() -> tuple[Pattern, ...]:
    """A subset for every commit: each consumer, type, block size, shape and rank at least once, one pattern of each kind."""
    return tuple(pattern for pattern in PATTERNS if pattern.quick)
