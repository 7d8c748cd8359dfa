"""How many texts of a model of onnxruntime-genai are those of stock, at accuracy levels 4 and 0.

    python -m benchmarks.genai_texts FOLDER [--texts 10] [--tokens 60]

Each text has a seed of its own if it is sampled, and else a prompt of its own. Prompts are random tokens.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conformance.markdown import table
from ort_qdq_plugin import Options, genai

_PROMPT = 16  # tokens
_HIGHEST_TOKEN = 60  # the smallest vocabulary that is asked has 64
_WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "4 beams": {"do_sample": False, "num_beams": 4},
    "sampled": {"do_sample": True, "top_k": 50, "top_p": 1.0, "temperature": 1.0},
}


def _texts(model: Any, way: str, args: argparse.Namespace) -> Iterator[list[int]]:
    import onnxruntime_genai as og  # not before: what it takes is told without it, too

    prompts = np.random.default_rng(0).integers(3, _HIGHEST_TOKEN, (args.texts, _PROMPT)).astype(np.int32)
    length = _PROMPT + args.tokens
    for number in range(args.texts):
        params = og.GeneratorParams(model)
        seed = {"random_seed": number} if way == "sampled" else {}
        params.set_search_options(max_length=length, min_length=length, **_WAYS[way], **seed)
        generator = og.Generator(model, params)
        generator.append_tokens(prompts[0 if seed else number])
        while not generator.is_done():
            generator.generate_next_token()
        yield [int(token) for token in generator.get_sequence(0)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.genai_texts", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder with a genai_config.json")
    parser.add_argument("--texts", type=int, default=10, help="of each kind (default 10)")
    parser.add_argument("--tokens", type=int, default=60, help="of each text (default 60)")
    args = parser.parse_args()
    import onnxruntime_genai as og

    stock = og.Model(str(args.folder))
    wanted = {way: list(_texts(stock, way, args)) for way in _WAYS}
    rows = []
    for level in (4, 0):
        model = genai.load(args.folder, options=Options(accuracy_level=level, strict=True))
        equal = {way: sum(map(list.__eq__, _texts(model, way, args), wanted[way])) for way in _WAYS}
        rows.append([str(level), *(f"{count} of {args.texts}" for count in equal.values())])
    print("\n".join(table(["accuracy level", *_WAYS], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
