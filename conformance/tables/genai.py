"""The table of onnxruntime-genai: a model's folder as it is, as this package prepares it, and as a second start finds it.

    python -m conformance.tables.genai --qdq FOLDER [--qoperator FOLDER] [--runs 5] [--check]

The folders are those of onnxruntime-genai's model builder, of one checkpoint: with `use_qdq=true`, and without. Each run is
a fresh process; the contenders take turns. The prompt is made of random tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.tables.measuring import MB, Results, Run, Section, Target, finish, interleave, memory, row
from ort_qdq_plugin.cli.machine import read_files

__all__ = ["main"]

_MODULE = "conformance.tables.genai"
_TITLES = {
    "stock-qdq": "stock, QDQ",
    "stock-qop": "stock, QOperator",
    "prepared": "**this package**, QDQ",
    "cached": "**this package**, QDQ, second start",
}


@dataclass(frozen=True)
class _Job:
    way: str
    model: str
    cache_dir: str
    prompt: int
    tokens: int


@dataclass(frozen=True)
class _Generated(Run):
    """`init_seconds` are those of the model, `token_seconds` those of a decoded token."""

    prefill_seconds: float = 0.0
    chosen: tuple[int, ...] = ()


def _load(job: _Job) -> Any:
    import onnxruntime_genai

    folder = str(Path(job.model).parent)
    if job.way.startswith("stock"):
        return onnxruntime_genai.Model(folder)
    from ort_qdq_plugin import Options, genai

    return genai.load(folder, options=Options(strict=True, cache_dir=job.cache_dir if job.way == "cached" else None))


def _do(job: _Job) -> _Generated:
    import onnxruntime_genai

    if not job.way.startswith("stock"):
        import ort_qdq_plugin.genai  # noqa: F401  # what importing takes is not part of the load, in any contender
    if job.way == "cached":
        read_files(Path(job.cache_dir).rglob("*"))
    before = memory()
    start = time.perf_counter()
    model = _load(job)
    init = time.perf_counter() - start
    after = memory()
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=job.prompt + job.tokens, min_length=job.prompt + job.tokens, do_sample=False)
    generator = onnxruntime_genai.Generator(model, params)
    prompt = np.random.default_rng(0).integers(10, 500, job.prompt).astype(np.int32)
    start = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    prefill = time.perf_counter() - start
    start, decoded = time.perf_counter(), 0
    while not generator.is_done():
        generator.generate_next_token()
        decoded += 1
    token = (time.perf_counter() - start) / max(decoded, 1)
    chosen = tuple(int(value) for value in generator.get_sequence(0)[job.prompt :])
    return _Generated(
        init_seconds=init,
        prefill_seconds=prefill,
        token_seconds=token,
        before=before,
        after=after,
        end=memory(),
        chosen=chosen,
    )


def _section(args: argparse.Namespace, cache: Path) -> Section:
    # Preparing without a cache links the model's files for a while, which changes a time by which caches know them.
    copy = shutil.copytree(args.qdq, cache.with_name("copy"))
    folders = {"stock-qdq": args.qdq, "stock-qop": args.qoperator, "prepared": args.qdq, "cached": copy}
    jobs = {
        way: _Job(way, str(folder.resolve() / "model.onnx"), str(cache), args.prompt, args.tokens)
        for way, folder in folders.items()
        if folder is not None
    }
    interleave(_MODULE, {"cached": jobs["cached"]}, 1, _Generated)  # fills the cache
    results = interleave(_MODULE, jobs, args.runs, _Generated)
    columns = ("folder", "load s", "prefill tokens/s", "decode tokens/s", "peak MB", "then anonymous / file MB")
    lines = [row(columns), row(["---"] * len(columns))]
    for way, result in results.items():
        if not result:
            lines.append(row([_TITLES[way], f"failed: {result.failure}"]))
            continue
        figures = [
            f"{result.init:.2f}",
            f"{args.prompt / result.median(lambda run: run.prefill_seconds):.0f}",
            f"{1 / result.token:.1f}",
            f"{result.peak / MB:.0f}",
            f"{result.median(lambda run: run.after.anon) / MB:.0f} / {result.median(lambda run: run.after.file) / MB:.0f}",
        ]
        lines.append(row([_TITLES[way], *figures]))
    errors = [f"{way}: {result.failure}" for way, result in results.items() if result.failure]
    return Section("onnxruntime-genai", lines, [] if errors else _targets(results), errors)


def _targets(results: dict[str, Results[_Generated]]) -> list[Target]:
    stock, cached = results.get("stock-qop"), results["cached"]
    if stock is None:
        return []
    return [
        Target("second start, load / stock QOperator", cached.init / stock.init, 1.1),
        Target("second start, token / stock QOperator", cached.token / stock.token, 1.05),
        Target("second start, peak / stock QOperator", cached.peak / stock.peak, 0.9),
        Target("second start, peak / stock QDQ", cached.peak / results["stock-qdq"].peak, 0.9),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--qdq", type=Path, help="the folder with a QDQ model")
    parser.add_argument("--qoperator", type=Path, help="the folder with the same model, of MatMulNBits nodes")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes of each contender (default 5)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt (default 128)")
    parser.add_argument("--tokens", type=int, default=48, help="tokens to decode (default 48)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--check", action="store_true", help="a missed target is an error")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(asdict(_do(_Job(**json.loads(args.child))))))
        return 0
    if args.qdq is None:
        parser.error("--qdq is needed")
    with tempfile.TemporaryDirectory(prefix="ort-qdq-genai-table-", dir=args.qdq.resolve().parent) as folder:
        section = _section(args, Path(folder) / "cache")
    return finish("onnxruntime-genai", [section], args)


if __name__ == "__main__":
    sys.exit(main())
