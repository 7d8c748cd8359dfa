"""All patterns. Weights are random, seeded by the pattern's name, so that each is the same model on every run.

Group 2, the plain layouts, is a pairwise cover of what can be combined, plus traps; group 3, the layouts that exporters
write besides, is written by hand.
"""

from __future__ import annotations

from conformance.patterns import (
    chains,
    default_zeros,
    embeddings,
    functions,
    gemms,
    half_precision,
    odd_blocks,
    old_opsets,
    other_operands,
    refused,
    sharing,
    static,
    subgraphs,
    traps,
)
from conformance.patterns.cover import cover
from conformance.patterns.pattern import Pattern

__all__ = ["PATTERNS", "quick_patterns"]

_BY_HAND = (
    traps, refused, sharing, chains, gemms, odd_blocks, embeddings, other_operands, subgraphs, functions, half_precision,
    old_opsets, static, default_zeros,
)  # fmt: skip

PATTERNS: tuple[Pattern, ...] = tuple(
    sorted(
        [*cover(), *(pattern for module in _BY_HAND for pattern in module.BOOK.patterns)],
        key=lambda pattern: pattern.group,
    )
)


def quick_patterns() -> tuple[Pattern, ...]:
    """A subset for every commit: each consumer, type, block size, shape and rank at least once, one pattern of each kind."""
    return tuple(pattern for pattern in PATTERNS if pattern.quick)
