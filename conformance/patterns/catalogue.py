"""All patterns. Weights are random, seeded by the pattern's name, so that each is the same model on every run.

Group 2, the plain layouts, is a pairwise cover of what can be combined, plus traps; group 3, the layouts that exporters
write besides, is written by hand.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

from conformance.drawing.draft import ROWS
from conformance.drawing.elements import Dim
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.bodies import FUNCTIONS, SUBGRAPHS
from conformance.patterns.convolutions import CONVOLUTIONS
from conformance.patterns.experts import EXPERTS
from conformance.patterns.folded import FOLDED
from conformance.patterns.once import ONCE
from conformance.patterns.pattern import ADD, GEMM_T, MATMUL, TRANSPOSE, ZEROS, Expectation, Pattern, Step, bias, pattern
from conformance.patterns.products import CHAINS, GEMMS, LEFT, SHARED
from conformance.patterns.routes import ROUTES
from conformance.patterns.storage import DEFAULT_ZEROS, EMBEDDINGS, HALF_PRECISION, ODD_BLOCKS, OLD_OPSETS, STATIC
from conformance.patterns.tools import TOOLS
from conformance.patterns.traps import REFUSED, TRAPS
from conformance.patterns.written_out import WRITTEN_OUT

__all__ = ["PATTERNS", "quick_patterns"]

_T = "t = Transpose <perm = [1, 0]> (w_d)"
_BIAS = {"bias": True}
_CONSUMERS: Mapping[str, tuple[str, bool, Mapping[str, Any]]] = {
    "matmul": (MATMUL, False, {}),
    "transpose-matmul": (TRANSPOSE, True, {}),
    "transpose-matmul-axis-1": (TRANSPOSE, True, {}),
    "gemm": ("y = Gemm(x, w_d)", False, {}),
    "gemm-bias": ("y = Gemm(x, w_d, bias)", False, _BIAS),
    "gemm-transB": (GEMM_T, True, {}),
    "gemm-transB-bias": ("y = Gemm <transB = 1> (x, w_d, bias)", True, _BIAS),
    "fusedmatmul-transB": ("y = com.microsoft.FusedMatMul <transB = 1> (x, w_d)", True, {}),
    "matmul-add": (ADD, False, _BIAS),
    "add-matmul": ("h = MatMul(x, w_d)  y = Add(bias, h)", False, _BIAS),
    "transpose-matmul-add": (f"{_T}  h = MatMul(x, t)  y = Add(h, bias)", True, _BIAS),
    "matmul-relu": ("h = MatMul(x, w_d)  y = Relu(h)", False, {}),
    "transpose-matmul-relu": (f"{_T}  h = MatMul(x, t)  y = Relu(h)", True, {}),
    "gemm-relu": ("h = Gemm(x, w_d)  y = Relu(h)", False, {}),
    "gemm-transB-bias-relu": ("h = Gemm <transB = 1> (x, w_d, bias)  y = Relu(h)", True, _BIAS),
    "dq-is-output": (MATMUL, False, {"stays": 1}),
    "constant-nodes": (MATMUL, False, {"constant_nodes": True}),
    "constant-nodes-transpose": (TRANSPOSE, True, {"constant_nodes": True}),
    "typed-data": (MATMUL, False, {"typed_data": True}),
}
"""Nodes that read the dequantized weight `w_d`, whether it is N-major, and what else the pattern has."""
_LARGEST_BLOCK = 256
"""Of the block sizes that MatMulNBits' kernel takes in every release."""
_QUICK_EACH = 2
"""Rows of each consumer in the quick subset; together they hold every value of every factor."""
_FACTORS: Mapping[str, Sequence[Any]] = {
    "consumer": tuple(_CONSUMERS),
    "element": ("uint2", "int2", "uint4", "int4", "uint8", "int8"),
    "zero": ("none", "random"),
    "scale": ("float", "float16"),
    "block": (16, 32, 64, 128, 256, 512, PER_CHANNEL, PER_TENSOR),
    # [K, N]: plain; K no multiple of a block; odd K; odd N; K below the block; one column; larger than every block.
    "shape": ((256, 64), (300, 48), (145, 40), (192, 63), (24, 40), (160, 1), (576, 33)),
    "rank": (1, 2, 3, 4),
}


def _pairs(choice: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(combinations(choice.items(), 2))


def _pairwise(tries: int = 40) -> list[dict[str, Any]]:
    """Choices in which every possible pair of values occurs; the same on every call."""
    dice = random.Random(2)
    pairs = [((one, a), (two, b)) for one, two in combinations(_FACTORS, 2) for a in _FACTORS[one] for b in _FACTORS[two]]
    open_pairs = dict.fromkeys(dice.sample(pairs, len(pairs)))
    choices: list[dict[str, Any]] = []
    while open_pairs:
        pair = next(iter(open_pairs))
        drawn = [{name: dice.choice(values) for name, values in _FACTORS.items()} | dict(pair) for _ in range(tries)]
        possible = (choice for choice in drawn if choice["rank"] == 2 or "gemm" not in choice["consumer"])  # matrices only
        best = max(possible, key=lambda choice: len(_pairs(choice) & open_pairs.keys()), default=None)
        choices += [best] if best else []
        for covered in _pairs(best) if best else [pair]:
            open_pairs.pop(covered, None)
    return choices


def _a_shape(columns: int, rank: int) -> list[Dim]:
    """A's shape (and, with N for K, the result's) at a rank."""
    shape: list[Dim] = [2, 1, ROWS, columns]
    return [2, *shape[2:]] if rank == 3 else shape[-rank:]


def _consumed(consumer: str, weight: Weight, rank: int = 2, quick: bool = False) -> Pattern:
    nodes, n_major, facts = _CONSUMERS[consumer]
    w = replace(weight, n_major=n_major)
    steps: list[Step] = [(lambda d: d.weight(w, axis=w.axis - 2)) if consumer.endswith("axis-1") else w]
    if "bias" in facts:
        steps.append(bias(w.n, kind=w.scale))
    steps.append(nodes)
    if "stays" in facts:
        steps.append(lambda d: d.output("w_d", w.shape, w.scale))
    block = {PER_CHANNEL: "channel", PER_TENSOR: "tensor"}.get(w.block, f"b{w.block}")
    name = f"{consumer}-{w.element}-{dict(ZEROS)[w.zero]}-{block}-{w.scale}-{w.k}x{w.n}-A{rank}d"
    # Not every release's kernel takes a block above 256: there a reason is as right as re-blocking.
    expects: Expectation = "either" if w.block > _LARGEST_BLOCK else "fused"
    ends: dict[str, Any] = {"x": _a_shape(w.k, rank), "y": _a_shape(w.n, rank), "kind": w.scale}
    return pattern(expects, name, *steps, **ends, **facts, group=2, precision=w.scale, quick=quick)


def _cover() -> Iterator[Pattern]:
    """The pairwise cover, then each type with and without zero points on the two main layouts where that lacks them."""
    drawn, seen = Counter[str](), set()
    for choice in _pairwise():
        k, n = choice["shape"]
        weight = Weight(choice["element"], k, n, choice["block"], choice["zero"], choice["scale"])
        drawn[choice["consumer"]] += 1
        quick = drawn[choice["consumer"]] <= _QUICK_EACH
        yield (covering := _consumed(choice["consumer"], weight, choice["rank"], quick))
        seen.add(covering.name)
    for consumer, element, zero in product(("matmul", "transpose-matmul"), _FACTORS["element"], _FACTORS["zero"]):
        if (plain := _consumed(consumer, Weight(element, zero=zero))).name not in seen:
            yield plain


_BY_HAND = SHARED + CHAINS + GEMMS + ODD_BLOCKS + EMBEDDINGS + LEFT + SUBGRAPHS + FUNCTIONS + HALF_PRECISION + OLD_OPSETS
_BY_HAND += TOOLS
_PLAIN = (*_cover(), *(replace(trap, group=2) for trap in TRAPS + REFUSED))
_MODULES = ONCE + CONVOLUTIONS + EXPERTS + FOLDED + ROUTES + WRITTEN_OUT
PATTERNS = tuple(sorted(_PLAIN + _BY_HAND + STATIC + DEFAULT_ZEROS + _MODULES, key=lambda pattern: pattern.group))


def quick_patterns() -> tuple[Pattern, ...]:
    """A subset for every commit: each consumer, type, block size, shape and rank at least once, one pattern of each kind."""
    return tuple(pattern for pattern in PATTERNS if pattern.quick)
