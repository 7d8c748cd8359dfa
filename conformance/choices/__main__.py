"""The table of choices: is the form that this package gives a product the fastest one there is?

    python -m conformance.choices [--quick] [--only GLOB] [--markdown FILE] [--check]

For products of three sizes, with weights of all kinds and few rows or many: stock ONNX Runtime as it is, this package, and
every form that this package could have chosen, made here by NumPy and run by stock. All take turns on one thread. A figure
is the least CPU time of the thread over several runs; before each, other memory is read, as a model's other weights are.

A form counts if it is exact: it multiplies by the same numbers, and rounds activations in blocks no larger than the weight's
own, or than stock's 32 where it has none. And if its operands take at most three times the bytes that the model stores:
weights dequantized once, which take more, are shown all the same. `--check` makes a missed target an error.
"""

import statistics
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product

import onnxruntime as ort

from conformance.checks import parser
from conformance.choices.cells import MAX_OVER_FASTEST, MAX_OVER_STOCK, Cell, cells
from conformance.choices.forms import ONCE, OURS, STOCK, Kind
from conformance.drawing.weight import PER_CHANNEL, Weight
from conformance.markdown import table

_SIZES = ((256, 256), (768, 3072), (2048, 2048))
_ROWS = (1, 8, 128, 512)
_BLOCKS = (16, 32, 64, 128, 256, 512, PER_CHANNEL)
_MAX_MEDIAN = 1.02


def _kinds(quick: bool) -> Iterator[Kind]:
    sizes, scales = (_SIZES[:1], ("float",)) if quick else (_SIZES, ("float", "float16"))
    for (k, n), scale, bits, level, block, n_major in product(sizes, scales, (2, 4, 8), (0, 4), _BLOCKS, (False, True)):
        yield Kind(Weight(f"uint{bits}", k, n, block, "random", scale, n_major), level)


_COLUMNS = ("weight", "rows", "chosen", "ms", "fastest", "ms", "stock ms", "once ms (bytes)", "/ fastest", "/ stock")


def _row(cell: Cell) -> list[str]:
    def ms(name: str) -> str:
        return f"{cell.seconds[name] * 1e3:.3f}"

    once = f"{ms(ONCE)} ({cell.growth[ONCE]:.1f}x)"
    ratios = [f"{cell.over(name):.2f}" for name in (cell.fastest, STOCK)]
    return [
        str(cell.kind), str(cell.rows), cell.chosen, ms(OURS), cell.fastest, ms(cell.fastest), ms(STOCK), once, *ratios
    ]  # fmt: skip


def _verdict(cells: list[Cell]) -> list[tuple[str, bool]]:
    """Lines on all cells together, and whether each is as it should be."""
    fastest, stock = [cell.over(cell.fastest) for cell in cells], [cell.over(STOCK) for cell in cells]
    # Between two sessions of one form there is nothing but noise.
    noise = [cell.over(cell.fastest) for cell in cells if cell.fastest in cell.same]
    noise += [cell.over(STOCK) for cell in cells if STOCK in cell.same]
    others = [cell.over(cell.fastest) for cell in cells if cell.fastest not in cell.same]
    stocks = [cell.over(STOCK) for cell in cells if STOCK not in cell.same]
    above, slower = sum(ratio > MAX_OVER_FASTEST for ratio in others), sum(ratio > MAX_OVER_STOCK for ratio in stocks)
    middle, once = statistics.median(fastest), sum(cell.over(ONCE) > MAX_OVER_FASTEST for cell in cells)
    return [
        (
            f"worst / fastest: {max(others, default=1):.2f} (<= {MAX_OVER_FASTEST}; {above} of {len(cells)} above)",
            not above,
        ),
        (f"median / fastest: {middle:.2f} (<= {_MAX_MEDIAN})", middle <= _MAX_MEDIAN),
        (f"worst / stock: {max(stocks, default=1):.2f} (<= {MAX_OVER_STOCK}; {slower} above)", not slower),
        (f"median / stock: {statistics.median(stock):.2f}", True),
        (f"worst / the same form in another session: {max(noise, default=1):.2f}, which is noise", True),
        (f"in {once}, a weight dequantized once would be faster, with more memory", True),
    ]


def main() -> int:
    made = parser(__doc__, quick="the smallest product, float, 1 and 128 rows")
    made.add_argument("--check", action="store_true", help="a missed target is an error")
    args = made.parse_args()
    measured, problems = list[Cell](), list[str]()
    for kind in _kinds(args.quick):
        rows = [count for count in ((1, 128) if args.quick else _ROWS) if fnmatch(f"{kind}, rows {count}", args.only)]
        for cell in cells(kind, rows, problems) if rows else ():
            measured.append(cell)
            print(" | ".join(_row(cell)), flush=True)
    verdict = _verdict(measured) if measured else [("nothing has such a name", False)]
    verdict += [(f"ERROR: {problem}", True) for problem in problems]
    print(*(("" if passed else "MISSED: ") + line for line, passed in verdict), sep="\n")
    if args.markdown:
        slowest = sorted(measured, key=lambda cell: -cell.over(cell.fastest))
        title = f"# The table of choices\n\nonnxruntime {ort.__version__}, one thread; the slowest in comparison come first."
        closing = ["", *(f"- {line}" for line, _ in verdict), ""]
        lines = [title, "", *table(_COLUMNS, map(_row, slowest)), *closing]
        args.markdown.write_text("\n".join(lines), encoding="utf-8")
    return int(bool(problems) or (args.check and not all(passed for _, passed in verdict)))


if __name__ == "__main__":
    sys.exit(main())
