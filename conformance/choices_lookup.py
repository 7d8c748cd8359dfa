"""Lookups in quantized tables, every way: whether what this package chooses (`fusion.lookups.CHOICES`) is the fastest.

Small tables and large ones of each type and layout are looked up with 1, 128 and 4096 indices, of two axes, by these
contenders: stock ONNX Runtime; this package as it is; each form that takes the table, which this package is made to choose;
and a table in float, as if it had been dequantized once, at several times the memory. All must give the same bits. Figures
are microseconds: the least CPU time of one thread; the contenders take turns.

The last lines say how far this package is behind the fastest contender and behind stock, at worst and in the median, and
what `CHOICES` has to say of the costs, measured on the small tables.
"""

import fnmatch
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from conformance.checks import parser, run
from conformance.drawing.draft import Draft
from conformance.drawing.elements import Array, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Zero
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.fusion.lookups import CHOICES, Choice, Form, Scales
from ort_qdq_plugin.model.elements import CODES

__all__ = ["CASES", "Case", "Table", "contenders_of", "main"]

SIZES = {"small": (512, 384), "large": (20_000, 384)}
COUNTS = (1, 128, 4096)
LAYOUTS: Mapping[str, tuple[Scales, dict[str, Any]]] = {
    "one": (Scales.ONE, {"axis": 1, "block": PER_TENSOR}),
    "row": (Scales.ROWS, {"axis": 0, "block": PER_CHANNEL}),
    "column": (Scales.COLUMNS, {"axis": 1, "block": PER_CHANNEL}),
    "block 32": (Scales.BLOCKS, {"axis": 1, "block": 32}),
    "block 128": (Scales.BLOCKS, {"axis": 1, "block": 128}),
}
COLUMNS = ("table", "indices", "stock", "package", *(form.name for form in Form), "once", "to fastest", "to stock")
# Seconds that a contender runs at a time, and how often; before that it runs for nothing, to find its table in the cache.
_SLICE, _TURNS, _WARM_RUNS = 0.001, 15, 2


class Table(NamedTuple):
    """A quantized table."""

    size: str
    element: str
    layout: str
    zero: Zero = "random"
    scale: str = "float"

    @property
    def name(self) -> str:
        parts = [self.size, self.element, *["without zero points"] * (self.zero == "none")]
        return ", ".join([" ".join(parts), self.layout, *[self.scale] * (self.scale != "float")])

    @property
    def key(self) -> tuple[int, bool, Scales]:
        """Its place among the choices."""
        return CODES[self.scale], self.element.endswith("8"), LAYOUTS[self.layout][0]

    @property
    def model(self) -> bytes:
        """y = rows of the table."""
        draft = self._draft()
        draft.dequantize(
            "w", SIZES[self.size], element=self.element, zero=self.zero, scale=self.scale, **LAYOUTS[self.layout][1]
        )  # fmt: skip
        draft.node("Gather", ["w_d", "i"], "y")
        return bytes(draft.model().SerializeToString())

    def once(self, values: Array) -> bytes:
        """The same of these values."""
        draft = self._draft()
        draft.constant(raw_tensor("w", CODES[self.scale], values.shape, values.tobytes()))
        draft.node("Gather", ["w", "i"], "y")
        return bytes(draft.model().SerializeToString())

    def _draft(self) -> Draft:
        draft = Draft(self.name, opset=25)
        draft.input("i", ["a", "b"], "int64")
        draft.output("y", ["a", "b", SIZES[self.size][1]], self.scale)
        return draft


class Case(NamedTuple):
    """A table, and how many indices it is looked up with."""

    table: Table
    indices: int


def _tables() -> Iterator[Table]:
    kinds: list[tuple[str, Zero, str]] = [
        ("uint8", "random", "float"), ("uint8", "none", "float"), ("int8", "none", "float"), ("int8", "random", "float"),
        ("uint4", "random", "float"), ("int4", "none", "float"), ("uint2", "random", "float"),
        ("uint8", "random", "float16"), ("int8", "none", "float16"), ("uint4", "random", "float16"),
    ]  # fmt: skip
    for size in SIZES:
        for element, zero, scale in kinds:
            layouts = [layout for layout in LAYOUTS if element.endswith("8") or layout != "column"]
            yield from (Table(size, element, layout, zero, scale) for layout in layouts)


CASES = {f"{table.name}, {count}": Case(table, count) for table in _tables() for count in COUNTS}


def _stock(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, _one_thread(), providers=CPU)


def _ours(model: bytes) -> ort.InferenceSession:
    return create_session(model, _one_thread(), providers=CPU)


def _one_thread() -> ort.SessionOptions:
    options = quiet_options()
    options.intra_op_num_threads = 1
    return options


@contextmanager
def _only(key: tuple[int, bool, Scales], form: Form) -> Iterator[None]:
    """While the block runs, the tables of one kind get this form or none, however small they are."""
    choice = CHOICES[key]
    CHOICES[key] = Choice((form,), whole=1, row=0, looked_up=0)
    try:
        yield
    finally:
        CHOICES[key] = choice


@lru_cache(maxsize=1)
def contenders_of(table: Table) -> dict[str, ort.InferenceSession]:
    """A session of every contender, by its column."""
    model, (rows, _) = table.model, SIZES[table.size]
    found = {"stock": _stock(model), "package": _ours(model)}
    for form in Form:
        with _only(table.key, form):
            session = _ours(model)
        report = report_of(session)
        if report is not None and report.fused:
            found[form.name] = session
    values = found["stock"].run(None, {"i": np.arange(rows)[None]})[0]
    found["once"] = _stock(table.once(values[0]))
    return found


def _times(sessions: Sequence[ort.InferenceSession], feeds: Mapping[str, Array]) -> list[float]:
    """Microseconds of one run of each."""

    def seconds(session: ort.InferenceSession, runs: int) -> float:
        for _ in range(_WARM_RUNS):
            session.run(None, feeds)
        start = time.process_time()
        for _ in range(runs):
            session.run(None, feeds)
        return (time.process_time() - start) / runs

    runs = [max(1, round(_SLICE / max(seconds(session, 1), 1e-6))) for session in sessions]
    taken = [[seconds(session, count) for session, count in zip(sessions, runs, strict=True)] for _ in range(_TURNS)]
    return [1e6 * min(times) for times in zip(*taken, strict=True)]


@cache
def _measured(case: Case) -> tuple[dict[str, float], list[str]]:
    """Microseconds by column, and what is wrong."""
    contenders, rows = contenders_of(case.table), SIZES[case.table.size][0]
    feeds = {"i": np.random.default_rng(case.indices).integers(-rows, rows, (1, case.indices))}
    results = {name: session.run(None, feeds)[0] for name, session in contenders.items()}
    problems = [f"{name} gives other bits" for name in results if not np.array_equal(results[name], results["stock"])]
    return dict(zip(contenders, _times(list(contenders.values()), feeds), strict=True)), problems


def _row_of(case: Case) -> tuple[list[str], list[str]]:
    times, problems = _measured(case)
    cells = [f"{times[column]:.1f}" if column in times else "" for column in COLUMNS[2:-2]]
    ratios = (f"{times['package'] / min(times.values()):.2f}", f"{times['package'] / times['stock']:.3f}")
    return [case.table.name, str(case.indices), *cells, *ratios, *problems], problems


def _ratios(measured: Mapping[str, Case]) -> Iterator[str]:
    """How far this package is behind others."""
    times = {name: _measured(case)[0] for name, case in measured.items()}
    for what in ("the fastest contender", "the fastest that takes no more memory", "stock"):
        left_out = {"the fastest contender": (), "stock": [form.name for form in Form] + ["once"]}.get(what, ("once",))
        ratios = {
            name: taken["package"] / min(time for other, time in taken.items() if other not in ("package", *left_out))
            for name, taken in times.items()
        }
        worst = max(ratios, key=ratios.__getitem__)
        yield f"to {what}: at worst {ratios[worst]:.2f} ({worst}), in the median {statistics.median(ratios.values()):.2f}"


def _costs(measured: Mapping[str, Case]) -> Iterator[str]:
    """What `CHOICES` says of the costs, and what they are."""
    for case in measured.values():
        table, (rows, columns) = case.table, SIZES[case.table.size]
        many = Case(table, COUNTS[-1])
        if table.size != "small" or case.indices != COUNTS[0] or many not in measured.values():
            continue
        one, all_of_them = _measured(case)[0], _measured(many)[0]
        whole = (one["stock"] - one["once"]) / rows / columns * 1e3
        costs = [
            f"{form.name} {(all_of_them[form.name] - all_of_them['once']) / many.indices / columns * 1e3:.2f}"
            for form in Form
            if form.name in all_of_them
        ]
        said = CHOICES[table.key]
        stated = f"said: {said.whole} and {said.row / columns + said.looked_up:.2f}"
        yield f"{table.name}: ns for an element of the whole {whole:.2f}; looked up {', '.join(costs)}; {stated}"


def main() -> int:
    args = parser(__doc__).parse_args()
    code = run(CASES, _row_of, COLUMNS, args, "# Lookups in quantized tables")
    measured = {name: CASES[name] for name in fnmatch.filter(CASES, args.only)}
    for line in (*_costs(measured), *_ratios(measured)):
        print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
