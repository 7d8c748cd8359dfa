"""The table of onnxruntime-genai: a model's folder as it is, as this package prepares it, and as a second start finds it.

    python -m benchmarks.genai --qdq FOLDER [--qoperator FOLDER] [--runs 5] [--check]

The folders are those of onnxruntime-genai's model builder, of one checkpoint: with `use_qdq=true`, and without. Each run is
a fresh process; the contenders take turns. The prompt is made of random tokens.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results import Results, command
from benchmarks.ways import measure, peers
from ort_qdq_plugin.cli.bench import Figure
from ort_qdq_plugin.cli.measure import Job


def _measured(results: Results, args: argparse.Namespace, scratch: Path) -> None:
    np.savez(scratch / "prompt.npz", np.random.default_rng(0).integers(10, 500, args.prompt).astype(np.int32))
    folders = [args.qdq.resolve(), *([args.qoperator.resolve()] if args.qoperator else [])]
    models = [
        Job(
            str(folder),
            inputs=str(scratch / "prompt.npz"),
            names=("prompt",),
            files=tuple(str(path) for path in folder.iterdir() if path.is_file()),
            runs=(args.tokens - 1, args.tokens - 1, 0.0),
            engine=str(Path(__file__).with_name("with_genai.py")),
        )
        for folder in folders
    ]
    ways = ("stock-qdq", *["stock-qop"] * (len(models) - 1), "ours-qdq", "cached")
    contenders = peers(ways, models, scratch, args.against)
    for key, peer in contenders.items():
        if key.startswith("cached"):
            # Preparing links the model's files, for a while or for a cache, which changes a time by which caches know them.
            peer.job = peer.job._replace(model=str(shutil.copytree(args.qdq, scratch / key)))
    measure(contenders, args.runs)
    prefill = Figure("prefill tokens/s", lambda run: args.prompt / run.first, 0)
    decode = Figure("decode tokens/s", lambda run: 1 / run.steady, 1)
    results.table(
        contenders, ["init", "cpu", "faults", prefill, decode, "run cpu", "peak", "loaded anonymous", "loaded file"],
        ["init", "cpu", decode, "peak"], ["stock-qdq", "stock-qop"],
    )  # fmt: skip
    # Importing onnxruntime and this package takes 25 MB, which large models do not show.
    for figure, base, limit in (("init", "stock-qop", 1.1), ("steady", "stock-qop", 1.05), ("peak", "stock-qop", 1.05)):
        results.target(contenders, figure, "cached", limit, by=base)
    if args.qoperator:
        results.target(contenders, "peak", "cached", 0.9, by="stock-qdq")


def main() -> int:
    parser, results = command("genai", __doc__, 5), Results("onnxruntime-genai")
    parser.add_argument("--qdq", type=Path, required=True, help="the folder with a QDQ model")
    parser.add_argument("--qoperator", type=Path, help="the folder with the same model, of MatMulNBits nodes")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt (default 128)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens to decode (default 48)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ort-qdq-genai-table-", dir=args.qdq.resolve().parent) as folder:
        _measured(results, args, Path(folder))
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
