"""The plain layouts: a pairwise cover of all that can be combined, from the consumer to the rank of A."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import onnx

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight, Zero
from conformance.patterns.consumers import CONSUMERS, WITH_BIAS, Consumer
from conformance.patterns.pattern import LARGEST_BLOCK, Expectation, Pattern, Precision

__all__ = ["BLOCKS", "FACTORS", "QUICK_EACH", "SHAPES", "cover"]

BLOCKS = (16, 32, 64, 128, 256, 512, PER_CHANNEL, PER_TENSOR)
SHAPES = ((256, 64), (300, 48), (145, 40), (192, 63), (24, 40), (160, 1), (576, 33))
"""[K, N]: plain; K no multiple of a block; odd K; odd N; K below the block; one column; larger than every block."""
QUICK_EACH = 2
"""So many rows of each consumer go into the quick subset; together they hold every value of every factor."""
FACTORS: Mapping[str, Sequence[Any]] = {
    "consumer": tuple(CONSUMERS),
    "element": ("uint2", "int2", "uint4", "int4", "uint8", "int8"),
    "zero": ("none", "random"),
    "scale": ("float", "float16"),
    "block": BLOCKS,
    "shape": SHAPES,
    "rank": (1, 2, 3, 4),
}


def _possible(choice: Mapping[str, Any]) -> bool:
    """Whether the operators can be put together like this: Gemm is for matrices."""
    return choice["rank"] == 2 or "gemm" not in choice["consumer"]


def _pairs(choice: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every two values of a choice."""
    return set(combinations(choice.items(), 2))


def _pairwise(tries: int = 40) -> list[dict[str, Any]]:
    """Choices in which every possible pair of values occurs; the same on every call."""
    dice = random.Random(2)
    pairs = [((one, a), (two, b)) for one, two in combinations(FACTORS, 2) for a in FACTORS[one] for b in FACTORS[two]]
    open_pairs = dict.fromkeys(dice.sample(pairs, len(pairs)))
    choices: list[dict[str, Any]] = []
    while open_pairs:
        pair = next(iter(open_pairs))
        drawn = [{name: dice.choice(values) for name, values in FACTORS.items()} | dict(pair) for _ in range(tries)]
        best = max(filter(_possible, drawn), key=lambda choice: len(_pairs(choice) & open_pairs.keys()), default=None)
        if best is None:
            del open_pairs[pair]
            continue
        choices.append(best)
        for covered in _pairs(best):
            open_pairs.pop(covered, None)
    return choices


def _block_name(block: int) -> str:
    """A block size as it appears in a pattern's name."""
    return {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}.get(block, f"b{block}")


def _build_consumer(name: str, consumer: Consumer, weight: Weight, rank: int) -> onnx.ModelProto:
    """The model of one choice."""
    draft = Draft(name)
    consumer(draft, weight, rank)
    return draft.model()


def _consumed(consumer: str, weight: Weight, rank: int = 2, **rest: Any) -> Pattern:
    """The pattern of one choice."""
    parts = [consumer, weight.element, "zp" if weight.zero != "none" else "sym", _block_name(weight.block)]
    name = "-".join([*parts, weight.scale, f"{weight.k}x{weight.n}", f"A{rank}d"])
    build = partial(_build_consumer, name, CONSUMERS[consumer], weight, rank)
    precision: Precision = "float16" if weight.scale == "float16" else "float"
    stays, bias = int(consumer == "dq-is-output"), consumer in WITH_BIAS
    # Not every release's kernel takes a block above 256: there a reason is as right as re-blocking.
    expects: Expectation = "either" if weight.block > LARGEST_BLOCK else "fused"
    return Pattern(name, build, expects, group=2, precision=precision, stays=stays, bias=bias, **rest)


def cover() -> Iterator[Pattern]:
    """The pairwise cover, then each type with and without zero points on the two main layouts."""
    seen: set[str] = set()
    drawn: Counter[str] = Counter()
    for choice in _pairwise():
        k, n = choice["shape"]
        weight = Weight(choice["element"], k, n, block=choice["block"], zero=choice["zero"], scale=choice["scale"])
        pattern = _consumed(choice["consumer"], weight, choice["rank"], quick=drawn[choice["consumer"]] < QUICK_EACH)
        drawn[choice["consumer"]] += 1
        seen.add(pattern.name)
        yield pattern
    zeros: tuple[Zero, ...] = ("none", "random")
    for consumer in ("matmul", "transpose-matmul"):
        for element in FACTORS["element"]:
            for zero in zeros:
                pattern = _consumed(consumer, Weight(element, zero=zero))
                if pattern.name not in seen:
                    yield pattern
