"""The layout table: how fast one token is on each way of writing a weight that stock ONNX Runtime leaves unfused.

    python -m conformance.tables.layout [--runs 5] [--markdown FILE] [--check]
    python -m conformance.tables.layout --quick              # tiny models: does it work, not how fast

1. One-token latency: each layout as a chain of products of a decoder's size, through stock ONNX Runtime, through this
   package, and as its QOperator twin (the same numbers in MatMulNBits or GatherBlockQuantized, written by hand) through
   stock ONNX Runtime.
2. A tied embedding and head: the weight that both read is held once.
3. What finding the fusions of large graphs costs.

Each run is a fresh process, contenders take turns, and a model's files are read right before each start. Medians over runs.
Models are written one at a time into a temporary folder and deleted behind it. `--check` makes a missed target an error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from conformance.tables.decoder import (
    ModelSpec,
    Product,
    Quantized,
    Tensor,
    _numbers,
    _repeat,
    _write,
    pack,
    write_fanout_model,
)
from conformance.tables.measuring import (
    MB,
    Results,
    Run,
    Section,
    Target,
    facts,
    finish,
    interleave,
    memory,
    own_seconds,
    row,
    say,
    stages,
)

__all__ = ["LAYOUTS", "Layout", "main"]

Array = NDArray[Any]
Dim = int | str

_MODULE = "conformance.tables.layout"

MS = "com.microsoft"
LEAST_SPEEDUP = 15.0
MOST_OF_TWIN = 1.10
ACCURACY_LEVEL = 4
BITS = 4
BLOCK = 32

_WARM_UP = 3
_LEAST_RUNS, _MOST_RUNS = 15, 2000
# A fast contender runs for so long; one that dequantizes all its weights stops after so long, and few runs.
_FAST_SECONDS, _SLOW_SECONDS, _LEAST_SLOW_RUNS = 1.0, 3.0, 5
# An id whose row lies inside the table, not at its start.
_ONE_ID = 777


# ---- drawing a model --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """A 4-bit weight: K rows and N columns as a product sees it, and how it is stored."""

    k: int = 0
    n: int = 0
    index: int = 0
    block: int = BLOCK  # 0: K as one block
    signed: bool = False
    scale: str = "float"
    n_major: bool = False

    @property
    def name(self) -> str:
        """Prefix of its tensors."""
        return f"w{self.index}"

    @property
    def elements_per_scale(self) -> int:
        """The block size."""
        return self.block or self.k

    @property
    def blocks(self) -> int:
        """Blocks along K."""
        return self.k // self.elements_per_scale

    def numbers(self, n_major: bool) -> Quantized:
        """Its numbers, unsigned, in an orientation."""
        spec = ModelSpec(layers=0, hidden=self.k, ffn=self.k, vocab=8, block=self.elements_per_scale)
        return _numbers(spec, Product(self.name, self.index, self.k, self.n), n_major)

    def scales(self, n_major: bool) -> Array:
        """Its scales, as float, with no more digits than they are stored with."""
        scales = self.numbers(n_major).scales
        return scales.astype(np.float16).astype(np.float32) if self.scale == "float16" else scales


class Sheet:
    """A model being drawn, its large tensors made only when they are written."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.values: list[ValueInfoProto] = []
        self._count = 0

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node; the name of its output."""
        self._count += 1
        output = output or f"{op}{self._count}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}.node", **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add a small constant."""
        self.constants[name] = numpy_helper.from_array(value, name)
        return name

    def bias(self, w: Weight, factor: float = 1.0) -> str:
        """Add a bias of [N], times a factor."""
        values = np.random.default_rng(w.index).standard_normal(w.n, dtype=np.float32)
        return self.constant(f"{w.name}.bias", values * np.float32(factor))

    def input(self, name: str, shape: Sequence[Dim], kind: int = TensorProto.FLOAT) -> str:
        """Add a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def declare(self, name: str, shape: Sequence[Dim]) -> None:
        """State the shape of a value in between."""
        self.values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def tensor(self, name: str, kind: int, dims: Sequence[int], make: Callable[[], Array]) -> str:
        """Add a large tensor."""
        sizes: dict[int, int] = {TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.UINT8: 8}
        size = sizes.get(kind, BITS)
        self.tensors[name] = Tensor(name, kind, tuple(dims), int(np.prod(dims)) * size // 8, make)
        return name

    def operands(self, w: Weight, shape: tuple[int, ...] = (), scale_shape: tuple[int, ...] = ()) -> list[str]:
        """Add a weight, its scales and zero points for DequantizeLinear."""
        shape = shape or ((w.n, w.k) if w.n_major else (w.k, w.n))
        scale_shape = scale_shape or ((w.n, w.blocks) if w.n_major else (w.blocks, w.n))
        kind = TensorProto.INT4 if w.signed else TensorProto.UINT4
        flip = 1 << BITS - 1 if w.signed else 0

        def scales() -> Array:
            return w.scales(w.n_major).astype(np.float16 if w.scale == "float16" else np.float32)

        return [
            self.tensor(f"{w.name}.q", kind, shape, lambda: w.numbers(w.n_major).weight ^ _repeat(flip, BITS)),
            self.tensor(
                f"{w.name}.s", TensorProto.FLOAT16 if w.scale == "float16" else TensorProto.FLOAT, scale_shape, scales
            ),
            self.tensor(
                f"{w.name}.z",
                kind,
                scale_shape,
                lambda: pack((w.numbers(w.n_major).zero_points ^ np.uint8(flip)).reshape(-1), BITS),
            ),
        ]

    def dequantized(self, w: Weight) -> str:
        """Add a weight and its DequantizeLinear."""
        axis = 1 if w.n_major else 0
        return self.dequantize(w, self.operands(w), axis)

    def dequantize(self, w: Weight, operands: Sequence[str], axis: int) -> str:
        """Add a DequantizeLinear on what `operands` added."""
        return self.node("DequantizeLinear", operands, axis=axis, block_size=w.elements_per_scale)

    def fused_operands(self, w: Weight, block: int = 0, alpha: float = 1.0) -> list[str]:
        """Add a weight as MatMulNBits takes it, in blocks of its own size or of a divisor, scales repeated."""
        block = block or w.elements_per_scale
        repeat = w.elements_per_scale // block
        blocks = w.k // block
        return [
            self.tensor(f"{w.name}.B", TensorProto.UINT8, (w.n, blocks, block // 2), lambda: w.numbers(True).weight),
            self.tensor(
                f"{w.name}.scales",
                TensorProto.FLOAT,
                (w.n * blocks,),
                lambda: np.repeat(w.scales(True) * np.float32(alpha), repeat, axis=1),
            ),
            self.tensor(
                f"{w.name}.zero_points",
                TensorProto.UINT8,
                (w.n * -(-blocks // 2),),
                lambda: pack(np.repeat(w.numbers(True).zero_points, repeat, axis=1), BITS),
            ),
        ]

    def fused(self, x: str, w: Weight, operands: Sequence[str], *, block: int = 0, bias: str = "") -> str:
        """Add a MatMulNBits on what `fused_operands` added."""
        return self.node(
            "MatMulNBits",
            [x, *operands, *(["", bias] if bias else [])],
            domain=MS,
            K=w.k,
            N=w.n,
            bits=BITS,
            block_size=block or w.elements_per_scale,
            accuracy_level=ACCURACY_LEVEL,
        )

    def body(self, name: str, output: str, shape: Sequence[Dim]) -> GraphProto:
        """The nodes drawn so far as a subgraph without tensors of its own; the sheet's nodes start anew."""
        nodes, self.nodes = self.nodes, []
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)])

    def write(self, path: Path, outputs: Mapping[str, Sequence[Dim]], storage: str = "external") -> None:
        """Write the model, its large tensors inside it or into a file beside it."""
        graph = helper.make_graph(
            self.nodes,
            "layout",
            self.inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            list(self.constants.values()),
            value_info=self.values,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        _write(path, model, self.tensors.values(), storage)


# ---- the layouts ------------------------------------------------------------------------------------

Draw = Callable[[Sheet, str, Weight], str]
"""Adds one product of a value with a weight (or, where a layout shares it, two); the name of the result."""


def _plain(s: Sheet, x: str, w: Weight, *, block: int = 0) -> str:
    return s.fused(x, w, s.fused_operands(w, block), block=block)


def _matmul(s: Sheet, x: str, w: Weight) -> str:
    return s.node("MatMul", [x, s.dequantized(w)])


def _transpose_matmul(s: Sheet, x: str, w: Weight) -> str:
    return s.node("MatMul", [x, s.node("Transpose", [s.dequantized(w)], perm=[1, 0])])


def _gemm_trans_b(s: Sheet, x: str, w: Weight) -> str:
    return s.node("Gemm", [x, s.dequantized(w)], transB=1)


def _fused_matmul(s: Sheet, x: str, w: Weight) -> str:
    return s.node("FusedMatMul", [x, s.dequantized(w)], domain=MS, transB=1)


def _cast_matmul(s: Sheet, x: str, w: Weight) -> str:
    return s.node("MatMul", [x, s.node("Cast", [s.dequantized(w)], to=TensorProto.FLOAT)])


def _blocked_matmul(s: Sheet, x: str, w: Weight) -> str:
    operands = s.operands(w, (w.n, w.blocks, w.block), (w.n, w.blocks, 1))
    flat = s.node("Reshape", [s.dequantize(w, operands, 2), s.constant(f"{w.name}.shape", np.array([w.n, -1]))])
    return s.node("MatMul", [x, s.node("Transpose", [flat], perm=[1, 0])])


def _lead_one_matmul(s: Sheet, x: str, w: Weight) -> str:
    operands = s.operands(w, (1, w.k, w.n), (1, w.blocks, w.n))
    return s.node("MatMul", [x, s.dequantize(w, operands, 1)])


_ALPHA, _BETA = 0.5, 2.0


def _gemm_alpha_beta(s: Sheet, x: str, w: Weight) -> str:
    return s.node("Gemm", [x, s.dequantized(w), s.bias(w)], alpha=_ALPHA, beta=_BETA)


def _gemm_alpha_beta_twin(s: Sheet, x: str, w: Weight) -> str:
    return s.fused(x, w, s.fused_operands(w, alpha=_ALPHA), bias=s.bias(w, _BETA))


def _shared(s: Sheet, x: str, w: Weight) -> str:
    dense = s.dequantized(w)
    return s.node("MatMul", [s.node("MatMul", [x, dense]), dense])


def _shared_twin(s: Sheet, x: str, w: Weight) -> str:
    operands = s.fused_operands(w)
    return s.fused(s.fused(x, w, operands), w, operands)


def _relu(s: Sheet, x: str, w: Weight, *, product: Draw) -> str:
    return s.node("Relu", [product(s, x, w)])


def _residual(s: Sheet, x: str, w: Weight, *, product: Draw) -> str:
    return s.node("Add", [x, product(s, x, w)])


def _left(s: Sheet, x: str, w: Weight) -> str:
    return s.node("MatMul", [s.dequantized(w), x])


def _left_twin(s: Sheet, x: str, w: Weight) -> str:
    row = s.node("Transpose", [x], perm=[1, 0])
    return s.node("Transpose", [_plain(s, row, w)], perm=[1, 0])


def _gather(s: Sheet, ids: str, w: Weight) -> str:
    return s.node("Gather", [s.dequantized(w), ids])


def _gather_twin(s: Sheet, ids: str, w: Weight) -> str:
    table, scales, zero_points = s.operands(w)
    return s.node(
        "GatherBlockQuantized",
        [table, ids, scales, zero_points],
        domain=MS,
        gather_axis=0,
        quantize_axis=1,
        block_size=w.block,
        bits=BITS,
    )


@dataclass(frozen=True)
class Layout:
    """One row: a way of writing a weight, and the fused node it stands for.

    `sizes`: widths of the chain, a product from each to the next. `feed`: what the model takes: "rows" [m, K],
    "batch" [b, s, K], "column" [K, 1] or "ids". `each`: fusions per weight. `in_branch`: the products stand in an If, their
    weights outside. `declared`: the model states the shapes of what lies between the products, as exporters do.
    """

    name: str
    product: Draw
    twin: Draw = _plain
    weight: Weight = field(default_factory=Weight)
    sizes: tuple[int, ...] = (3072, 8192, 3072, 8192, 3072)
    feed: str = "batch"
    each: int = 1
    in_branch: bool = False
    declared: bool = True

    @property
    def weights(self) -> Iterator[Weight]:
        """The weights in their order."""
        for index, (k, n) in enumerate(pairwise(self.sizes)):
            # A table has a row for each id: what a product calls N.
            k, n = (n, k) if self.feed == "ids" else (k, n)
            yield replace(self.weight, k=k, n=n, index=index)

    @property
    def fusions(self) -> int:
        """How many nodes are to be fused."""
        return self.each * (len(self.sizes) - 1)

    def write(self, path: Path, draw: Draw) -> None:
        """Write the model."""
        s = Sheet()
        x = s.input("x", *self._input())
        if self.in_branch:
            s.input("cond", [], TensorProto.BOOL)
        for w in self.weights:
            x = draw(s, x, w)
            if self.declared and not self.in_branch and w.index < len(self.sizes) - 2:
                s.declare(x, self._shape(w.n))
        if self.in_branch:
            then = s.body("then", x, self._output())
            other = s.body("else", s.node("Neg", ["x"]), self._output())
            x = s.node("If", ["cond"], then_branch=then, else_branch=other)
        s.write(path, {x: self._output()})

    def _input(self) -> tuple[Sequence[Dim], int]:
        if self.feed == "ids":
            return ["s"], TensorProto.INT64
        return self._shape(self.sizes[0]), TensorProto.FLOAT

    def _output(self) -> Sequence[Dim]:
        return self._shape(self.sizes[-1])

    def _shape(self, width: int) -> Sequence[Dim]:
        shapes: dict[str, Sequence[Dim]] = {"batch": ["b", "s", width], "column": [width, 1]}
        return shapes.get(self.feed, ["m", width])

    def small(self) -> Layout:
        """The same with little tensors."""
        # Multiples of every block size used.
        sizes = (1024, 192) if self.feed == "ids" else tuple(192 if size < 4000 else 384 for size in self.sizes)
        return replace(self, sizes=sizes)


_N_MAJOR = Weight(n_major=True)
_SQUARE = (4096,) * 6
# Multiples of 48 and 96.
_ODD = (3072, 9216, 3072, 9216, 3072)
_TABLE = (32064, 3072)

LAYOUTS = (
    Layout("DQ(axis 1), Transpose, MatMul", _transpose_matmul, weight=_N_MAJOR),
    Layout("the same, int4", _transpose_matmul, weight=replace(_N_MAJOR, signed=True)),
    Layout("DQ(axis 1), Gemm(transB=1)", _gemm_trans_b, weight=_N_MAJOR, feed="rows"),
    Layout("DQ(axis 1), FusedMatMul(transB=1)", _fused_matmul, weight=_N_MAJOR),
    Layout("DQ float16, Cast, MatMul", _cast_matmul, weight=Weight(scale="float16")),
    Layout("[N, blocks, block], Reshape, Transpose, MatMul", _blocked_matmul, weight=_N_MAJOR),
    Layout("weight [1, K, N]", _lead_one_matmul),
    Layout("weight [1, K, N], no shapes declared", _lead_one_matmul, declared=False),
    Layout("Gemm(alpha, beta)", _gemm_alpha_beta, _gemm_alpha_beta_twin, feed="rows"),
    Layout("one DQ, two MatMuls", _shared, _shared_twin, sizes=_SQUARE[:4], each=2),
    Layout("MatMul, Relu", partial(_relu, product=_matmul), partial(_relu, product=_plain)),
    Layout("block 48", _matmul, partial(_plain, block=16), Weight(block=48), _ODD),
    Layout("block 96", _matmul, partial(_plain, block=32), Weight(block=96), _ODD),
    Layout("K as one block", _matmul, partial(_plain, block=32), Weight(block=0)),
    Layout("weight on the left", _left, _left_twin, weight=_N_MAJOR, feed="column"),
    Layout("weight on the left, no shapes declared", _left, _left_twin, weight=_N_MAJOR, feed="column", declared=False),
    Layout("Gather, one id", _gather, _gather_twin, _N_MAJOR, _TABLE, "ids"),
    Layout(
        "2-D MatMul, Add of a residual",
        partial(_residual, product=_matmul),
        partial(_residual, product=_plain),
        sizes=_SQUARE,
        feed="rows",
    ),
    Layout("in an If, weights outside", _matmul, in_branch=True),
    Layout("the same, DQ(axis 1), Transpose, MatMul", _transpose_matmul, weight=_N_MAJOR, in_branch=True),
)


# ---- one run, in its own process --------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a child process is to do: "stock", "ours", or only "inspect"."""

    contender: str
    model: str
    output: str = ""  # where the first result goes, as .npy
    as_bytes: bool = False  # the model is handed over as bytes
    ids: int = 1  # how many ids a model that takes ids is given
    timed: bool = True
    threads: int = 0


def _child(job: Job) -> Run:
    """Do a job in this process."""
    import onnxruntime

    import ort_qdq_plugin

    model: Any = Path(job.model).read_bytes() if job.as_bytes else job.model
    before = memory()
    if job.contender == "inspect":
        return Run(report=facts(ort_qdq_plugin.inspect(model)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = job.threads
    start = time.perf_counter()
    if job.contender == "ours":
        # Strict: a fallback to stock must not pass for this package's figure.
        strict = ort_qdq_plugin.Options(strict=True)
        session = ort_qdq_plugin.create_session(model, options, ["CPUExecutionProvider"], options=strict)
    else:
        session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    init = time.perf_counter() - start
    after = memory()
    report = ort_qdq_plugin.report_of(session)
    feeds = {entry.name: _feed(entry, job.ids) for entry in session.get_inputs()}

    def run() -> Array:
        return np.asarray(session.run(None, feeds)[0])

    result = run()
    if job.output:
        np.save(job.output, result)
    times = _times(run) if job.timed else []
    return Run(
        init_seconds=init,
        token_seconds=median(times) if times else 0.0,
        before=before,
        after=after,
        end=memory(),
        report=facts(report),
    )


def _feed(entry: Any, ids: int) -> Array:
    """One token for a model's input; or `ids` ids, spread over the whole of the tied model's table."""
    if entry.type == "tensor(bool)":
        return np.array(True)
    if entry.type == "tensor(int64)":
        return np.array([_ONE_ID]) if ids == 1 else np.linspace(0, _TABLE[0] - 1, ids).astype(np.int64)
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def _times(run: Callable[[], object]) -> list[float]:
    """Seconds of each of many runs, after a few that do not count."""
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    total = 0.0
    while len(times) < _MOST_RUNS:
        if total > _FAST_SECONDS and len(times) >= _LEAST_RUNS:
            break
        if total > _SLOW_SECONDS and len(times) >= _LEAST_SLOW_RUNS:
            break
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        total += times[-1]
    return times


# ---- 1: one token -----------------------------------------------------------------------------------


_COLUMNS = (
    "layout",
    "stock ms",
    "this package ms",
    "twin ms",
    "stock / ours",
    "ours / twin",
    "output against the twin's",
    "verdict",
)


@dataclass(frozen=True)
class Row:
    """One layout's line, the targets it missed, and what is wrong whatever the speed."""

    line: str
    missed: list[Target]
    errors: list[str]


def _layout_row(args: argparse.Namespace, layout: Layout, folder: Path) -> Row:
    """Write one layout, measure it, and delete it."""
    shape = layout.small() if args.quick else layout
    qdq, twin = folder / "qdq.onnx", folder / "twin.onnx"
    shape.write(qdq, shape.product)
    shape.write(twin, shape.twin)
    outputs = {name: folder / f"{name}.npy" for name in ("stock", "ours", "twin")}
    jobs = {
        name: Job(
            "ours" if name == "ours" else "stock",
            str(twin if name == "twin" else qdq),
            str(output),
            threads=args.threads,
        )
        for name, output in outputs.items()
    }
    results = interleave(_MODULE, jobs, args.runs, Run)
    difference = _difference(outputs["ours"], outputs["twin"])
    for file in folder.iterdir():
        file.unlink()
    row = _judge(layout, shape.fusions, results, difference, args.quick)
    say(row.line)
    return row


def _difference(ours: Path, twin: Path) -> float | None:
    """The largest difference, relative to the largest output; None without both."""
    if not (ours.exists() and twin.exists()):
        return None
    one, other = np.load(ours).astype(np.float64), np.load(twin).astype(np.float64)
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max() / np.abs(other).max())


def _judge(layout: Layout, fusions: int, results: Mapping[str, Results[Run]], difference: float | None, quick: bool) -> Row:
    stock, ours, twin = results["stock"], results["ours"], results["twin"]
    errors = [f"{layout.name}: {name}: {results[name].failure}" for name in ("ours", "twin") if results[name].failure]
    facts = ours.report
    if facts and (facts["fused"] != fusions or facts["unfused"]):
        errors.append(f"{layout.name}: {facts['fused']} of {fusions} fused; {'; '.join(facts['unfused'])}")
    targets = []
    if stock and ours:
        targets.append(Target(f"{layout.name}: stock / ours", stock.token / ours.token, LEAST_SPEEDUP, at_least=True))
    if ours and twin:
        targets.append(Target(f"{layout.name}: ours / twin", ours.token / twin.token, MOST_OF_TWIN))
    missed = [] if quick else [target for target in targets if not target.passed]
    cells = [
        layout.name,
        *(_spread(runs) if runs else "fails to load" for runs in (stock, ours, twin)),
        f"{stock.token / ours.token:.1f}" if stock and ours else "",
        f"{ours.token / twin.token:.3f}" if ours and twin else "",
        "" if difference is None else "identical" if difference == 0 else f"{difference:.1e}",
        "FAIL" if missed or errors else "PASS",
    ]
    return Row(row(cells), missed, errors)


def _spread(runs: Results[Run]) -> str:
    """The median token, and the fastest and slowest process's."""
    tokens = [run.token_seconds * 1e3 for run in runs.runs]
    return f"{runs.token * 1e3:.3g} ({min(tokens):.3g}-{max(tokens):.3g})"


def latency_section(args: argparse.Namespace) -> Section:
    """Every layout's one-token latency."""
    rows = []
    for layout in LAYOUTS:
        if args.only and not any(part in layout.name for part in args.only):
            continue
        with tempfile.TemporaryDirectory(prefix="layout-table-", dir=args.dir) as folder:
            rows.append(_layout_row(args, layout, Path(folder)))
    lines = [
        f"4-bit weights, block {BLOCK} where not said otherwise, zero points, accuracy level {ACCURACY_LEVEL}; chains of "
        f"{LAYOUTS[0].sizes} where nothing else is needed; {args.runs} runs each.",
        f"Targets: stock / ours >= {LEAST_SPEEDUP:.0f}, ours / twin <= {MOST_OF_TWIN}. Output: largest difference relative "
        "to the largest output.",
        "",
        row(_COLUMNS),
        row(["---"] * len(_COLUMNS)),
        *(row.line for row in rows),
    ]
    if args.quick:
        lines += ["", "Tiny models show that it works; their times are not judged."]
    missed = [target for row in rows for target in row.missed]
    errors = [error for row in rows for error in row.errors]
    return Section("One token on the layouts that stock leaves unfused", lines, missed, errors)


# ---- 2: tied weights --------------------------------------------------------------------------------


def _write_tied(path: Path, rows: int, columns: int, *, tied: bool, inline: bool) -> int:
    """Write ids -> embedding -> last row -> head, on one weight or on two; the bytes of one, with scales and zero points."""
    s = Sheet()
    s.input("ids", ["s"], TensorProto.INT64)
    head = Weight(columns, rows, n_major=True)
    dense = s.dequantized(head)
    size = sum(tensor.nbytes for tensor in s.tensors.values())
    table = dense if tied else s.dequantized(replace(head, index=1))
    embedded = s.node("Gather", [table, "ids"])
    last = s.node("Gather", [embedded, s.constant("last", np.array([-1]))], axis=0)
    logits = s.node("MatMul", [last, s.node("Transpose", [dense], perm=[1, 0])])
    s.write(path, {logits: [1, rows]}, "inline" if inline else "external")
    return size


_TIED_COLUMNS = (
    "model",
    "by",
    "form",
    "stored MB",
    "init s",
    "peak MB (VmHWM)",
    "anonymous MB after load",
    "file MB at the end",
    "packed MB",
    "borrowed MB",
)
# Of the 4-bit bytes, scales and zero points left out.
_LEAST_OF_WEIGHT = 0.9
_ALL_IDS = 2048


def tied_section(args: argparse.Namespace) -> Section:
    """What a weight that is both embedding and head takes, against two weights, and against stock."""
    rows, columns = (1024, 192) if args.quick else _TABLE
    lines = [row(_TIED_COLUMNS), row(["---"] * len(_TIED_COLUMNS))]
    peaks: dict[str, float] = {}
    borrowed: dict[str, float] = {}
    packed: dict[str, float] = {}
    errors: list[str] = []
    size = 0
    for inline in (False, True):
        with tempfile.TemporaryDirectory(prefix="layout-table-", dir=args.dir) as folder:
            paths = {name: Path(folder) / f"{name}.onnx" for name in ("tied", "two")}
            for name, path in paths.items():
                size = _write_tied(path, rows, columns, tied=name == "tied", inline=inline)
            form = "bytes" if inline else "path"
            ids = 1 if args.quick else _ALL_IDS
            jobs = {
                f"{name}-{who}-{form}": Job(who, str(path), "", inline, ids, timed=False, threads=args.threads)
                for who in ("ours", "stock")
                for name, path in paths.items()
            }
            results = interleave(_MODULE, jobs, args.runs, Run)
        for name, runs in results.items():
            if not runs:
                errors.append(f"{name}: {runs.failure}")
                continue
            peaks[name] = runs.median(lambda run: run.end.high)
            facts = runs.report
            if facts:
                borrowed[name], packed[name] = facts["borrowed_bytes"], facts["packed_bytes"]
            lines.append(_tied_line(name, runs, size * (1 if name.startswith("tied") else 2)))
            say(lines[-1])
    text = [
        f"Embedding and head on one [{rows}, {columns}] weight: {size / MB:.1f} MB with scales and zero points. The "
        f"prompt's {_ALL_IDS} ids are spread over the table, so that all of its pages are read. Peak: VmHWM of the whole "
        "process after one run. By path, weights are pages of the mapped file: the head's are dropped once ONNX Runtime has "
        "pre-packed it, the embedding's come back when they are read, so that a second table costs file and page cache, "
        "not this peak. As bytes, every stored weight is in anonymous memory throughout: there the difference of the peaks "
        "is what a second weight takes. It can miss the scales, of which ONNX Runtime copies those that happen to be "
        "unaligned in the model's bytes.",
        "",
        *lines,
    ]
    return Section("Tied embedding and head", text, _tied_targets(args, size, peaks, borrowed, packed), errors)


def _tied_line(name: str, runs: Results[Run], stored: int) -> str:
    model, who, form = name.split("-")
    facts = runs.report
    megabytes = [f"{facts[key] / MB:.1f}" if facts else "" for key in ("packed_bytes", "borrowed_bytes")]
    return row(
        [
            "one weight" if model == "tied" else "two weights",
            "this package" if who == "ours" else "stock",
            form,
            f"{stored / MB:.0f}",
            f"{runs.median(lambda run: run.init_seconds):.2f}",
            f"{runs.median(lambda run: run.end.high) / MB:.0f}",
            f"{runs.median(lambda run: run.after.anon) / MB:.0f}",
            f"{runs.median(lambda run: run.end.file) / MB:.0f}",
            *megabytes,
        ]
    )


def _tied_targets(
    args: argparse.Namespace,
    size: int,
    peaks: Mapping[str, float],
    borrowed: Mapping[str, float],
    packed: Mapping[str, float],
) -> list[Target]:
    targets = [
        Target(f"{name}: weights held, borrowed and packed", (borrowed[name] + packed[name]) / size, 1.001, "weights")
        for name in ("tied-ours-path", "tied-ours-bytes")
        if name in borrowed
    ]
    if args.quick:
        return targets
    one, two, stock = (peaks.get(name) for name in ("tied-ours-bytes", "two-ours-bytes", "tied-stock-bytes"))
    if one and two:
        saved = (two - one) / (_TABLE[0] * _TABLE[1] * BITS // 8)
        what = "as bytes, peak of two weights less peak of one, by the weight's 4-bit bytes"
        targets.append(Target(what, saved, _LEAST_OF_WEIGHT, at_least=True))
    if one and stock:
        targets.append(Target("as bytes, peak / stock's", one / stock, 1.0))
    return targets


# ---- 3: matching ------------------------------------------------------------------------------------


def _write_shared_fanout(path: Path, nodes: int, products: int, width: int) -> None:
    """Write a graph of many nodes whose products all read one small weight, each through a DequantizeLinear of its own."""
    s = Sheet()
    x = s.input("x", ["b", "s", width])
    w = Weight(width, width)
    operands = s.operands(w)
    for _ in range(products):
        x = s.node("MatMul", [x, s.dequantize(w, operands, 0)])
        for step in range(nodes // products - 2):
            x = s.node("Softsign" if step % 2 else "Neg", [x])
    s.write(path, {x: ["b", "s", width]})


def matching_section(args: argparse.Namespace) -> Section:
    """What deciding costs on graphs of many nodes."""
    nodes, products = (2_000, 200) if args.quick else (20_000, 2_000)
    targets: list[Target] = []
    errors: list[str] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="layout-table-", dir=args.dir) as folder:
        path = Path(folder) / "model.onnx"
        for what in ("a weight for each product", "one weight for all"):
            if what == "one weight for all":
                _write_shared_fanout(path, nodes, products, 64)
            else:
                write_fanout_model(path, nodes, products, 64)
            title = f"{nodes:,} nodes, {products:,} products, {what}"
            inspected = interleave(_MODULE, {"inspect": Job("inspect", str(path))}, args.runs, Run)["inspect"]
            seconds = _stages(inspected, products, title, errors)
            if seconds:
                stages = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
                lines.append(f"- inspect, {title}: {stages}")
                targets.append(Target(f"{title}: open and match", seconds["open"] + seconds["match"], 1.0, "s"))
        fewer, fused = nodes // 4, products // 4
        write_fanout_model(path, fewer, fused, 64)
        jobs = {who: Job(who, str(path), timed=False) for who in ("ours", "stock")}
        results = interleave(_MODULE, jobs, args.runs, Run)
        ours = results["ours"]
        title = f"{fewer:,} nodes, {fused} fusions"
        seconds = _stages(ours, fused, title, errors)
        if seconds:
            own = ours.median(own_seconds)
            inits = [runs.median(lambda run: run.init_seconds) if runs else float("nan") for runs in results.values()]
            stages = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
            lines.append(f"- create_session, {title}: {inits[0]:.2f} s, stock {inits[1]:.2f} s; {stages}")
            targets.append(Target(f"{title}: create_session without pack and create session", own, 1.5, "s"))
    return Section("Matching", lines, targets, errors)


def _stages(runs: Results[Run], fusions: int, title: str, errors: list[str]) -> dict[str, float]:
    """Median seconds of each stage; {} and an error where not all was fused."""
    if not runs:
        errors.append(f"{title}: {runs.failure}")
        return {}
    if runs.report["fused"] != fusions:
        errors.append(f"{title}: {runs.report['fused']} of {fusions} fused")
    return stages(runs)


# ---- the command ------------------------------------------------------------------------------------

_SECTIONS = {"latency": latency_section, "tied": tied_section, "matching": matching_section}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, help="processes per contender: default 5; with --quick 1")
    parser.add_argument("--sections", nargs="+", default=list(_SECTIONS), choices=list(_SECTIONS))
    parser.add_argument("--only", nargs="+", help="layouts whose name contains one of these")
    parser.add_argument("--threads", type=int, default=0, help="intra-op; 0: ONNX Runtime's own choice")
    parser.add_argument("--dir", type=Path, help="where models are written for a while (default: the temporary folder)")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it work, not how fast")
    parser.add_argument("--markdown", type=Path, help="write the result there too")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.runs = args.runs or (1 if args.quick else 5)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 1 if something is wrong."""
    args = _arguments(argv)
    if args.child:
        print(json.dumps(asdict(_child(Job(**json.loads(args.child))))), flush=True)
        return 0
    sections = [_SECTIONS[name](args) for name in args.sections]
    return finish("Layout table", sections, args)


if __name__ == "__main__":
    sys.exit(main())
