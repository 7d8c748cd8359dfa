"""All patterns. Weights are random, seeded by the pattern's name, so that each is the same model on every run.

Group 2, the plain layouts, is a pairwise cover of what can be combined, plus traps; group 3, the layouts that exporters
write besides, is written by hand.
"""

from dataclasses import replace

from conformance.patterns.bodies import FUNCTIONS, SUBGRAPHS
from conformance.patterns.chains import CHAINS
from conformance.patterns.cover import cover
from conformance.patterns.pattern import Pattern
from conformance.patterns.products import GEMMS, LEFT, SHARED
from conformance.patterns.storage import DEFAULT_ZEROS, EMBEDDINGS, HALF_PRECISION, ODD_BLOCKS, OLD_OPSETS, STATIC
from conformance.patterns.traps import REFUSED, TRAPS

__all__ = ["PATTERNS", "quick_patterns"]

_BY_HAND = (
    SHARED, CHAINS, GEMMS, ODD_BLOCKS, EMBEDDINGS, LEFT, SUBGRAPHS, FUNCTIONS, HALF_PRECISION, OLD_OPSETS, STATIC,
    DEFAULT_ZEROS,
)  # fmt: skip
_PLAIN = (*cover(), *(replace(trap, group=2) for trap in TRAPS + REFUSED))
PATTERNS: tuple[Pattern, ...] = tuple(
    sorted([*_PLAIN, *(pattern for rows in _BY_HAND for pattern in rows)], key=lambda pattern: pattern.group)
)


def quick_patterns() -> tuple[Pattern, ...]:
    """A subset for every commit: each consumer, type, block size, shape and rank at least once, one pattern of each kind."""
    return tuple(pattern for pattern in PATTERNS if pattern.quick)
