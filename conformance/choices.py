"""The table of choices: is the form that this package gives a product the fastest one there is?

    python -m conformance.choices [--quick] [--only GLOB] [--markdown FILE] [--check]

For products of three sizes, with weights of all kinds and few rows or many: stock ONNX Runtime as it is, this package, and
every form that this package could have chosen, made here by NumPy and run by stock. All take turns on one thread. A figure
is the least CPU time of the thread over several runs; before each, other memory is read, as a model's other weights are.

A form counts if it is exact: it multiplies by the same numbers, and rounds activations in blocks no larger than the weight's
own, or than stock's 32 where it has none. And if its operands take at most three times the bytes that the model stores:
weights dequantized once, which take more, are shown all the same. `--check` makes a missed target an error.
"""

import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from conformance.checks import parser
from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import FLOATS, MS, Array, pack, raw_float, raw_tensor, unpack
from conformance.drawing.weight import PER_CHANNEL, Weight
from conformance.markdown import table
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import create_session, report_of

_SIZES = ((256, 256), (768, 3072), (2048, 2048))
_ROWS = (1, 8, 128, 512)
_BLOCKS = (16, 32, 64, 128, 256, 512, PER_CHANNEL)
_LEVEL_KEY = "session.qdq_matmulnbits_accuracy_level"

_MAX_GROWTH = 3
_DEFAULT_BLOCK, _LARGEST_2_BIT_BLOCK = 32, 256
_SMALLER_BLOCKS = (64, 128, 256)

_STOCK, _OURS, _ONCE = "stock", "this package", "once"
_MAX_OVER_FASTEST, _MAX_MEDIAN, _MAX_OVER_STOCK = 1.15, 1.02, 1.05

_SECONDS = 0.12
"""For the runs of one contender on one number of rows."""
_RUNS = (3, 60)
_OTHER_MEMORY = np.ones(1 << 20)
"""8 MiB: more than the caches of one core hold."""
_MORE_TRIES = 6
"""Where a figure misses its target, all run again, in new sessions, whose memory lies elsewhere: noise only ever adds."""

_LIMITS = {("float", 0): 1e-5, ("float16", 0): 2e-3, ("float", 4): 2e-2, ("float16", 4): 2e-2}
"""The largest error at an accuracy level, over the largest result."""


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


class Cell(NamedTuple):
    """What was measured of one kind with so many rows."""

    kind: Kind
    rows: int
    chosen: str  # what this package made of it
    seconds: Mapping[str, float]  # of each contender
    growth: Mapping[str, float]

    @property
    def fastest(self) -> str:
        """Of the contenders that count, leaving out this package."""
        counting = [name for name, growth in self.growth.items() if growth <= _MAX_GROWTH and name != _OURS]
        return min(counting, key=self.seconds.__getitem__)

    @property
    def is_right(self) -> bool:
        """Whether no other contender is faster by more than the targets allow."""
        return self.over(self.fastest) <= _MAX_OVER_FASTEST and self.over(_STOCK) <= _MAX_OVER_STOCK

    def over(self, name: str) -> float:
        """This package's time over another contender's."""
        return self.seconds[_OURS] / self.seconds[name]


def _kinds(quick: bool) -> Iterator[Kind]:
    sizes, scales = (_SIZES[:1], ("float",)) if quick else (_SIZES, ("float", "float16"))
    for (k, n), scale, bits, level, block, n_major in product(sizes, scales, (2, 4, 8), (0, 4), _BLOCKS, (False, True)):
        yield Kind(Weight(f"uint{bits}", k, n, block, "random", scale, n_major), level)


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


class _Product:
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
        named = {_STOCK: stock(self.qdq, self.stored_bytes), _OURS: Contender(ours, held / self.stored_bytes)}
        for bits, block in _forms(self.kind):
            named[f"{bits} bits, {block}"] = stock(*self.fused(bits, block))
        return {**named, _ONCE: stock(*self.once())}

    def feed(self, rows: int) -> dict[str, Array]:
        x = np.random.default_rng(rows).standard_normal((rows, self.kind.weight.k))
        return {"x": x.astype(self._kind)}

    def wrong(self, contenders: Mapping[str, Contender]) -> Iterator[str]:
        """Those whose results are not the unoptimized model's."""
        options = quiet_options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        feed, limit = self.feed(9), _LIMITS[self.kind.weight.scale, self.kind.level]
        (right,) = ort.InferenceSession(self.qdq, options, providers=CPU).run(None, feed)
        for name, contender in contenders.items():
            (result,) = contender.session.run(None, feed)
            error = np.abs(result.astype(np.float64) - right).max() / np.abs(right.astype(np.float64)).max()
            if not error <= limit:
                yield f"{name} has an error of {error:.1e}"


def _least_seconds(contenders: Mapping[str, Contender], feed: Mapping[str, Array]) -> dict[str, float]:
    """The least time of each contender, in turns, in another order each time."""
    taken: dict[str, list[int]] = {name: [] for name in contenders}
    run = ort.InferenceSession.run  # of the native session: what this package adds to each call is another matter
    for contender in contenders.values():
        run(contender.session, None, feed)
    least, most = _RUNS
    for turn in range(most):
        for name in random.sample(list(contenders), len(contenders)):
            if turn >= least and sum(taken[name]) > _SECONDS * 1e9:
                continue
            _OTHER_MEMORY.sum()
            start = time.thread_time_ns()
            run(contenders[name].session, None, feed)
            taken[name].append(time.thread_time_ns() - start)
    return {name: min(times) / 1e9 for name, times in taken.items()}


def _chosen(session: ort.InferenceSession) -> str:
    report = report_of(session)
    fused = report.fused if report is not None else ()
    return f"{fused[0].bits} bits, {fused[0].block_size}" if fused else _STOCK


def _cells(kind: Kind, rows: Sequence[int], problems: list[str]) -> Iterator[Cell]:
    drawn = _Product(kind)
    try:
        contenders = drawn.contenders()
    except Exception as error:  # stock refuses some, by unrelated types: nothing to compare with
        print(f"{kind}: {str(error).splitlines()[0][:150]}", flush=True)
        return
    problems += [f"{kind}: {wrong}" for wrong in drawn.wrong(contenders)]
    growth = {name: contender.growth for name, contender in contenders.items()}
    if growth[_OURS] > _MAX_GROWTH:
        problems.append(f"{kind}: operands grow to {growth[_OURS]:.2f} of their bytes")
    chosen = _chosen(contenders[_OURS].session)
    for count in rows:
        feed = drawn.feed(count)
        cell = Cell(kind, count, chosen, _least_seconds(contenders, feed), growth)
        for _ in range(_MORE_TRIES):
            if cell.is_right:
                break
            again = _least_seconds(drawn.contenders(), feed)
            cell = cell._replace(seconds={name: min(time, again[name]) for name, time in cell.seconds.items()})
        yield cell


_COLUMNS = ("weight", "rows", "chosen", "ms", "fastest", "ms", "stock ms", "once ms (bytes)", "/ fastest", "/ stock")


def _row(cell: Cell) -> list[str]:
    def ms(name: str) -> str:
        return f"{cell.seconds[name] * 1e3:.3f}"

    once = f"{ms(_ONCE)} ({cell.growth[_ONCE]:.1f}x)"
    ratios = [f"{cell.over(name):.2f}" for name in (cell.fastest, _STOCK)]
    return [
        str(cell.kind), str(cell.rows), cell.chosen, ms(_OURS), cell.fastest, ms(cell.fastest), ms(_STOCK), once, *ratios
    ]  # fmt: skip


def _verdict(cells: list[Cell]) -> list[tuple[str, bool]]:
    """Lines on all cells together, and whether each is as it should be."""
    fastest, stock = [cell.over(cell.fastest) for cell in cells], [cell.over(_STOCK) for cell in cells]
    above, slower = (
        sum(ratio > limit for ratio in ratios) for ratios, limit in ((fastest, _MAX_OVER_FASTEST), (stock, _MAX_OVER_STOCK))
    )
    middle = statistics.median(fastest)
    once = sum(cell.over(_ONCE) > _MAX_OVER_FASTEST for cell in cells)
    return [
        (f"worst / fastest: {max(fastest):.2f} (<= {_MAX_OVER_FASTEST}; {above} of {len(cells)} above)", not above),
        (f"median / fastest: {middle:.2f} (<= {_MAX_MEDIAN})", middle <= _MAX_MEDIAN),
        (f"worst / stock: {max(stock):.2f} (<= {_MAX_OVER_STOCK}; {slower} above)", not slower),
        (f"median / stock: {statistics.median(stock):.2f}", True),
        (f"in {once}, a weight dequantized once would be faster, with more memory", True),
    ]


def main() -> int:
    made = parser(__doc__, quick="the smallest product, float, 1 and 128 rows")
    made.add_argument("--check", action="store_true", help="a missed target is an error")
    args = made.parse_args()
    cells, problems = list[Cell](), list[str]()
    for kind in _kinds(args.quick):
        rows = [count for count in ((1, 128) if args.quick else _ROWS) if fnmatch(f"{kind}, rows {count}", args.only)]
        for cell in _cells(kind, rows, problems) if rows else ():
            cells.append(cell)
            print(" | ".join(_row(cell)), flush=True)
    verdict = _verdict(cells) if cells else [("nothing has such a name", False)]
    verdict += [(f"ERROR: {problem}", True) for problem in problems]
    print(*(("" if passed else "MISSED: ") + line for line, passed in verdict), sep="\n")
    if args.markdown:
        slowest = sorted(cells, key=lambda cell: -cell.over(cell.fastest))
        title = f"# The table of choices\n\nonnxruntime {ort.__version__}, one thread; the slowest in comparison come first."
        closing = ["", *(f"- {line}" for line, _ in verdict), ""]
        lines = [title, "", *table(_COLUMNS, map(_row, slowest)), *closing]
        args.markdown.write_text("\n".join(lines), encoding="utf-8")
    return int(bool(problems) or (args.check and not all(passed for _, passed in verdict)))


if __name__ == "__main__":
    sys.exit(main())
