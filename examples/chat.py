"""Chat with a language model in onnxruntime-genai, on fused weights.

    pip install '.[genai]' && python examples/chat.py FOLDER [--cache-dir DIR] [--prompt TEXT]

FOLDER is one of onnxruntime-genai's: genai_config.json, the model's files, a tokenizer. Without --prompt it asks for text
until there is none. What was fused is said first, and how fast tokens came after each answer.
"""

import os

# Before ONNX Runtime is imported: an example is not to be counted, unless the variable says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import onnxruntime_genai as og

from ort_qdq_plugin import Options, genai

__all__ = ["answer", "main"]


def answer(model: Any, tokenizer: Any, text: str, max_length: int) -> Iterator[str]:
    """The pieces of an answer as they come."""
    prompt = text
    with suppress(RuntimeError):  # a model without a template goes on with what it is given
        prompt = tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": text}]), add_generation_prompt=True)
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=max_length)
    generator = og.Generator(model, params)
    generator.append_tokens(tokenizer.encode(prompt))
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        yield stream.decode(generator.get_next_tokens()[0])


def _texts(given: str | None) -> Iterator[str]:
    if given is not None:
        yield given
        return
    with suppress(EOFError):
        while text := input("> ").strip():
            yield text


def main(arguments: list[str] | None = None) -> int:
    """Load the model, then answer."""
    parser = argparse.ArgumentParser(description="Chat with a language model on fused weights.")
    parser.add_argument("folder", help="of the model, with its genai_config.json")
    parser.add_argument("--cache-dir", help="where the prepared model is kept for the next time")
    parser.add_argument("--prompt", help="what to say (default: what is typed)")
    parser.add_argument("--max-length", type=int, default=512, help="of prompt and answer, in tokens (default 512)")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    model = genai.load(given.folder, options=Options(cache_dir=given.cache_dir))
    tokenizer = og.Tokenizer(model)
    print(f"loaded in {time.perf_counter() - start:.2f} s")
    for filename, report in genai.report_of(model).items():
        print(f"{filename}: {report.summary()}")
    for text in _texts(given.prompt):
        start, count = time.perf_counter(), 0
        for piece in answer(model, tokenizer, text, given.max_length):
            print(piece, end="", flush=True)
            count += 1
        print(f"\n{count / (time.perf_counter() - start):.1f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
