"""The load table: how a session starts, what it costs and how it runs, by several ways of loading.

    python -m benchmarks.load                      # the table, a Phi-3-mini-shaped decoder
    python -m benchmarks.load --quick              # the same on tiny models, within seconds
    python -m benchmarks.load --packing --inline --overhead

Below each table stand the targets that can be judged from it; `--check` makes a missed one an error. A contender that fails
is shown as failed and does not stop the others.
"""

import argparse
import math
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.big_models import Pair, write_pair
from benchmarks.first_load import AGAIN, small_loads
from benchmarks.results import MB, MS, Results, command
from benchmarks.small_models import SMALL_MODELS
from benchmarks.ways import WAYS, jobs, measure, peers
from ort_qdq_plugin.cli.bench import Figure
from ort_qdq_plugin.cli.demo_model import PHI_3_MINI, Decoder
from ort_qdq_plugin.cli.measure import Job, Run, difference

_WAYS = ["stock-qop", "stock-qdq", "openvino", "ours-qdq", "ours-qop"]
_TIMES = ("init", "cpu", "faults", "first", "steady", "run cpu")
_MEMORY = ("peak", "load peak", "peak anonymous", "peak file", "loaded anonymous", "loaded file")
_ALL = ("K-major", "N-major", "in place")
# For which kinds of models, a figure, whose it is, by whose, and at most how much.
_TARGETS = (
    (_ALL, "init", "ours-qop", "stock-qop", 0.75),
    (_ALL, "peak", "ours-qop", "stock-qop", 0.90),
    (["in place"], "init", "ours-qdq", "stock-qop", 0.75),
    (_ALL[:2], "init", "ours-qdq", "stock-qop", 1.0),
    (_ALL[:2], "peak", "ours-qdq", "stock-qop", 0.90),
    (["K-major"], "init", "ours-qdq", "stock-qdq", 0.40),
    (["K-major"], "peak", "ours-qdq", "stock-qdq", 0.65),
    (["inline"], "peak", "ours-qdq", "stock-qop", 1.0),
    (["inline"], "peak", "ours-qdq", "stock-qdq", 1.0),
    (["inline"], "init", "ours-qdq", "stock-qdq", 1.1),
)
_INLINE_LAYERS = 4
_LATE_SECONDS = 0.01  # by which a sample may be older than its time


def _pair(args: argparse.Namespace, variant: str, storage: str = "external", layers: int = 0) -> Pair:
    shape = Decoder(0, 256, 512, 1024) if args.quick else PHI_3_MINI
    shape = shape._replace(layers=layers or args.layers)
    name = "-".join([variant, str(shape.layers), *storage.replace(",", "").split(), *["quick"] * args.quick])
    return write_pair(args.dir / name, variant, shape, storage=storage, level=args.accuracy_level)


def _load(results: Results, args: argparse.Namespace, variant: str, storage: str = "external", layers: int = 0) -> None:
    pair = _pair(args, variant, storage, layers)
    weight = pair.weight
    results.say(
        f"\n## Load, {variant}, {storage}\n\n{pair.shape.layers} layers, width {pair.shape.width}, "
        f"{pair.weight_bytes / MB:.0f} MB of {weight.element} weights, block {weight.block}, zero points: {weight.zero}, "
        f"{weight.scale} scales, {'N-major' if weight.n_major else 'K-major'}; accuracy level {args.accuracy_level}, "
        f"{args.runs} runs each.{' Tiny models: their time and memory are not judged.' if args.quick else ''}\n"
    )
    names = [name for name in args.contenders if name != "openvino" or find_spec(name)]
    names += ["stock-dense"] if args.dense and "stock-dense" not in names else []
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        common: dict[str, Any] = {"level": args.accuracy_level, "threads": args.threads, "runs": (1, 7, 8.0)}
        contenders = peers(names, jobs(folder, pair.qdq, pair.qop, **common), folder, args.against)
        if "stock-dense" in contenders:
            contenders["stock-dense"].most = 1
        measure(contenders, args.runs)
        reference = "stock-qop" if "stock-qop" in names else names[0]
        results.table(
            contenders, _TIMES + _MEMORY, ("init", "cpu", "peak"), ["stock-qdq", "stock-qop"],
            reference=reference, may_fail=("stock-qdq", "stock-dense", "openvino"),
        )  # fmt: skip
        # The same kernel on the same weights agrees to the last bit. Stock ONNX Runtime fuses no N-major weights, and puts
        # float16 casts elsewhere in a QDQ model.
        exact = ["ours-qdq", "ours-qop", *["stock-qdq"] * (not weight.n_major and weight.scale == "float")]
        for key, peer in contenders.items():
            if reference == "stock-qop" and key.partition("@")[0] in exact and difference(peer, contenders[reference]):
                results.error(f"{key} differs from {reference}")
    in_place = weight.n_major and not weight.kind.signed
    kind = "inline" if storage != "external" else "in place" if in_place else "N-major" if weight.n_major else "K-major"
    if in_place:
        results.target(contenders, "packed", "ours-qdq", 0)
    for kinds, figure, ours, base, limit in [] if args.quick else _TARGETS:
        if kind in kinds:
            results.target(contenders, figure, ours, limit, by=base)
    if in_place and not args.quick:
        results.target(contenders, "steady", "stock-qdq", 20, by="ours-qdq", at_least=True)


def _packing(results: Results, args: argparse.Namespace, variant: str) -> None:
    pair = _pair(args, variant)
    results.say(f"\n## Packing, {variant}\n\n{pair.weight_bytes / MB:.0f} MB of weights, beside scales and zero points.\n")
    job = Job(str(pair.qdq), threads=args.threads, files=(str(pair.qdq), f"{pair.qdq}.data"))
    contenders = peers(["ours-qdq"], [job], args.dir, args.against)
    measure(contenders, args.runs)
    taken = Figure("anonymous meanwhile MB", _taken_by_packing, 0)
    rate = Figure("packed GB/s", lambda run: pair.weight_bytes / run.facts["seconds"].get("pack", math.inf) / 1e9, 2)
    results.table(contenders, [rate, taken, "init", "cpu", "packed"], [rate, "cpu"], [])
    if not args.quick and any(run.facts["packed_bytes"] for run in contenders["ours-qdq"].runs):
        results.target(contenders, rate, "ours-qdq", 0.8, at_least=True)
        results.target(contenders, taken, "ours-qdq", 256)


def _taken_by_packing(run: Run) -> float:
    """The most anonymous memory until all was packed, beyond what the process had before, in MB."""
    packed = run.loaded - run.facts["seconds"]["create session"] - _LATE_SECONDS
    return (max(memory.anonymous for at, memory in run.samples if at < packed) - run.before.anonymous) / MB


def _overhead(results: Results, args: argparse.Namespace) -> None:
    """What a model costs that this package does nothing for; what importing takes is left to the table of first loads."""
    results.say("\n## Overhead\n")
    load = Figure("load ms", lambda run: (run.init - run.imported) * MS, 1)
    titles = [title for title in SMALL_MODELS if title.startswith("float")]
    # A difference of milliseconds needs more runs than one of seconds.
    contenders = small_loads(titles, ("stock-qdq", "ours-qdq"), 3 * args.runs, args)
    results.table(contenders, [load, AGAIN, "cpu"], [load, AGAIN, "cpu"], ["stock-qdq"])
    for model in (f"{title}: " for title in titles):
        stock = contenders[f"{model}stock-qdq"]
        limit = 10 + 0.05 * (stock.median(load.of) if stock.runs else 0)
        results.target(contenders, load, "ours-qdq", limit, over="stock-qdq", model=model)


def main() -> int:
    parser, results = command("load", __doc__), Results("Load table")
    parser.add_argument("--layers", type=int, help="default 32; with --quick 2")
    parser.add_argument("--variants", nargs="+", default=["uint4", "int4", "uint4-nmajor"])
    parser.add_argument("--contenders", nargs="+", default=_WAYS, choices=list(WAYS), metavar="WAY")
    parser.add_argument("--dense", action="store_true", help="also stock with disable_quant_qdq (much memory)")
    parser.add_argument("--threads", type=int, default=2, help="intra-op; 0: the library's own choice")
    parser.add_argument("--accuracy-level", type=int, default=4)
    parser.add_argument("--dir", type=Path, help="where models are kept (default: a temporary folder)")
    parser.add_argument("--packing", action="store_true", help="not the table, but packing's speed and scratch")
    parser.add_argument("--inline", action="store_true", help="weights inside the .onnx")
    parser.add_argument("--overhead", action="store_true", help="models without QDQ")
    args = parser.parse_args()
    args.layers = args.layers or (2 if args.quick else PHI_3_MINI.layers)
    args.runs = args.runs or (2 if args.quick else 5)
    with tempfile.TemporaryDirectory(prefix="load-table-") as temporary:
        args.dir = (args.dir or Path(temporary)).resolve()
        for variant in () if args.packing or args.inline or args.overhead else args.variants:
            _load(results, args, variant)
        for variant in args.variants if args.packing else ():
            _packing(results, args, variant)
        for storage in ("inline", "inline, explicit DEFAULT") if args.inline else ():
            _load(results, args, "uint4", storage, 1 if args.quick else _INLINE_LAYERS)
        if args.overhead:
            _overhead(results, args)
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
