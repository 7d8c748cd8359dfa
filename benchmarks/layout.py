"""The layout table: how fast one token is on each way of writing a weight that stock ONNX Runtime leaves unfused.

    python -m benchmarks.layout [--runs 5] [--markdown FILE] [--check]
    python -m benchmarks.layout --quick              # tiny models: does it work, not how fast

1. latency: each layout as a chain of products of a decoder's size, through stock ONNX Runtime, through this package, and as
   its QOperator twin (the same numbers in MatMulNBits or GatherBlockQuantized, written by hand) through stock ONNX Runtime.
2. tied: an embedding and a head that read one weight, which is held once.
3. matching: what finding the fusions of large graphs costs.

Models are written one at a time into a temporary folder and deleted behind it.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.big_models import BigWeight, Sheet
from benchmarks.layouts import LAYOUTS, TABLE
from benchmarks.results import MB, Results, command, own_seconds, stage_seconds
from benchmarks.ways import jobs, measure, peers
from ort_qdq_plugin.cli.bench import Figure
from ort_qdq_plugin.cli.measure import Peer

_WAYS = ("stock-qdq", "ours-qdq")
_IDS = 2048  # of a prompt that reads all of a table
_Write = Callable[[Path], object]


def _contest(
    args: argparse.Namespace, outputs: Path, model: str, ways: Sequence[str], *writers: _Write, **fields: Any
) -> dict[str, Peer]:
    """Write models, the last one for the ways that load a QOperator model, measure what loads them, and delete them."""
    with tempfile.TemporaryDirectory(prefix="layout-table-") as folder:
        paths = [Path(folder, f"{number}.onnx") for number in range(len(writers))]
        for path, write in zip(paths, writers, strict=True):
            write(path)
        made = peers(ways, jobs(folder, *paths, **fields), outputs, args.against, model)
        measure(made, args.runs)
    return made


def _expect(results: Results, contenders: Mapping[str, Peer], model: str, fusions: int) -> None:
    for run in contenders[f"{model}ours-qdq"].runs[-1:]:
        if run.fused != fusions or run.facts["unfused"]:
            results.error(f"{model}{run.fused} of {fusions} fused")


def _latency(results: Results, args: argparse.Namespace, outputs: Path) -> None:
    results.say(
        f"\n## One token on layouts that stock leaves unfused\n\n4-bit weights with zero points, block 32 where not said "
        f"otherwise, accuracy level 4; {args.runs} runs each. QOperator models are written by hand.\n"
    )
    contenders: dict[str, Peer] = {}
    layouts = [layout for layout in LAYOUTS if any(part in layout.name for part in args.only)]
    for layout in layouts:
        shape = layout.small if args.quick else layout
        writers = [partial(shape.write, product=product) for product in (shape.product, shape.twin)]
        ways = (*_WAYS, "stock-qop")
        contenders |= _contest(args, outputs, f"{layout.name}: ", ways, *writers, runs=(5, 2000, 1.5))
    both = ("steady", "run cpu")
    results.table(contenders, both, both, ["stock-qdq", "stock-qop"], reference="stock-qop", may_fail=["stock-qdq"])
    for layout in layouts:
        model = f"{layout.name}: "
        _expect(results, contenders, model, layout.fusions)
        if not args.quick:
            results.target(contenders, "steady", "stock-qdq", 15, by="ours-qdq", at_least=True, model=model)
            results.target(contenders, "steady", "ours-qdq", 1.10, by="stock-qop", model=model)


def _write_tied(path: Path, storage: str, rows: int, columns: int, tied: bool) -> None:
    """ids -> embedding -> last row -> head, on one weight or on two."""
    s = Sheet(path, storage)
    head = BigWeight(k=columns, n=rows, n_major=True)
    dense = s.dequantized(head)
    words = dense if tied else s.dequantized(replace(head, name="table"))
    embedded = s.node("Gather", [words, s.input("ids", ["s"], "int64")])
    last = s.node("Gather", [embedded, s.small("last", np.array([-1]))], axis=0)
    s.output(s.node("MatMul", [last, s.node("Transpose", [dense], perm=[1, 0])]), [1, rows])
    s.save()


def _tied(results: Results, args: argparse.Namespace, outputs: Path) -> None:
    """What a weight that is both embedding and head takes, against two weights, and against stock."""
    rows, columns = (1024, 192) if args.quick else TABLE
    stored = rows * columns * (1 / 2 + 4 / 32 + 1 / 2 / 32)  # 4 bits, and for each block a float and 4 bits
    contenders: dict[str, Peer] = {}
    for form, storage in (("path", "external"), ("bytes", "inline")):
        for name, tied in (("two weights", False), ("one weight", True)):
            write = partial(_write_tied, storage=storage, rows=rows, columns=columns, tied=tied)
            ids: dict[str, Any] = {"shapes": {"ids": (_IDS,)}, "runs": (0, 0, 0.0)}
            model = f"{name}, {form}: "
            contenders |= _contest(args, outputs, model, _WAYS, write, as_bytes=form == "bytes", **ids)
    results.say(
        f"\n## Tied embedding and head\n\nBoth on one [{rows}, {columns}] weight: {stored / MB:.1f} MB with scales and zero "
        f"points; {_IDS} ids. By path, a second weight costs page cache rather than peak: its pages are dropped once ONNX "
        "Runtime has pre-packed it. As bytes, all is in anonymous memory, and the difference of the peaks is what a second "
        "weight takes. It can miss scales: ONNX Runtime copies those that are unaligned in the bytes.\n"
    )
    shown = ["init", "cpu", "peak", "loaded anonymous", "file", "packed", "borrowed"]
    results.table(contenders, shown, ["init", "cpu", "peak"], ["stock-qdq"])
    held = Figure("weights held", lambda run: (run.facts["borrowed_bytes"] + run.facts["packed_bytes"]) / stored, 3)
    one, two = "one weight, bytes: ours-qdq", "two weights, bytes: ours-qdq"
    for ours in ("one weight, path: ours-qdq", one):
        results.target(contenders, held, ours, 1.001)
    if not args.quick:
        saved = Figure("peak by 4-bit weights", lambda run: run.peak / (rows * columns / 2), 2)
        results.target(contenders, saved, two, 0.9, over=one, at_least=True)
        results.target(contenders, "peak", one, 1.0, by="one weight, bytes: stock-qdq")


def _write_fanout(path: Path, nodes: int, products: int, one_weight: bool) -> None:
    """Many nodes, of which some are products with small weights, their own or one for all; the rest is glue."""
    s = Sheet(path)
    x = s.input("x", ["b", "s", 64])
    operands: list[str] = []
    for index in range(products):
        w = BigWeight(k=64, n=64, name=f"w{index}")
        operands = operands if operands and one_weight else s.operands(w)
        x = s.node("MatMul", [x, s.dequantize(w, operands)])
        for step in range(nodes // products - 2):
            x = s.node("Softsign" if step % 2 else "Neg", [x])
    s.output(x, ["b", "s", 64])
    s.save()


def _matching(results: Results, args: argparse.Namespace, outputs: Path) -> None:
    """What deciding costs on graphs of many nodes, every tenth of which is a product."""
    results.say("\n## Matching\n")
    nodes = 2_000 if args.quick else 20_000
    deciding = Figure("open and match s", lambda run: stage_seconds(run, "open", "match"), 3)
    own = Figure("beside packing and ONNX Runtime s", own_seconds, 3)
    graphs = {
        f"{nodes:,} nodes, a weight for each product: ": (nodes, False, deciding, 1.0),
        f"{nodes:,} nodes, one weight: ": (nodes, True, deciding, 1.0),
        f"{nodes // 4:,} nodes, a weight for each product: ": (nodes // 4, False, own, 1.5),
    }
    contenders: dict[str, Peer] = {}
    for model, (number, shared, *_) in graphs.items():
        write = partial(_write_fanout, nodes=number, products=number // 10, one_weight=shared)
        contenders |= _contest(args, outputs, model, _WAYS, write, inputs="")
    results.table(contenders, [deciding, own, "init", "cpu"], ["init", "cpu"], ["stock-qdq"])
    for model, (number, _, figure, limit) in graphs.items():
        _expect(results, contenders, model, number // 10)
        results.target(contenders, figure, "ours-qdq", limit, model=model)


_SECTIONS = {"latency": _latency, "tied": _tied, "matching": _matching}


def main() -> int:
    parser, results = command("layout", __doc__), Results("Layout table")
    parser.add_argument("--sections", nargs="+", default=list(_SECTIONS), choices=list(_SECTIONS))
    parser.add_argument("--only", nargs="+", default=[""], help="layouts whose name contains one of these")
    args = parser.parse_args()
    args.runs = args.runs or (1 if args.quick else 5)
    with tempfile.TemporaryDirectory(prefix="layout-table-") as folder:
        for name in args.sections:
            _SECTIONS[name](results, args, Path(folder))
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
