"""Releases of ONNX Runtime: which were tried, and since which one each thing is there that an older one lacks.

What every release has that was tried is in no table: `python -m conformance.contracts` has it. What each row says was found
by that command, and by `python -m conformance.patterns`, with the releases from `OLDEST` to `NEWEST`.
"""

from __future__ import annotations

from typing import TypeAlias

__all__ = [
    "LARGE_BLOCKS",
    "LENT_FILES",
    "NEWEST",
    "OLDEST",
    "READ_PREPACKED",
    "SPARSE_EXPERTS",
    "ZERO_POINTS_OF_OUTER_GRAPHS",
    "Release",
    "has",
    "installed",
    "name_of",
]

Release: TypeAlias = tuple[int, int]
"""Major and minor number."""

OLDEST: Release = (1, 28)
"""The oldest that is supported."""

NEWEST: Release = (1, 32)
"""The newest that was tried. Of later ones `ort.release` finds out what it has to know."""

ZERO_POINTS_OF_OUTER_GRAPHS: Release = (1, 29)
"""MatMulNBits in a subgraph takes zero points that are constants of an outer graph. Before, at accuracy level 4 with 4 or 8
bits, it computes wrong numbers with them."""

LENT_FILES: Release = (1, 31)
"""Files in memory are used in place (`ort.buffers.borrow`). Before, each tensor in them is copied."""

LARGE_BLOCKS: Release = (1, 32)
"""MatMulNBits takes blocks longer than 256, for 4 and 8 bits."""

SPARSE_EXPERTS: Release = (1, 32)
"""QMoE has zero points, an accuracy level, and weights of router probabilities of their own."""

READ_PREPACKED: Release = (1, 32)
"""Pre-packed weights in a file are compared with what is made anew, and so are read, before a session uses them."""


def installed() -> Release:
    """The installed release."""
    # Not before: the oldest one is asked for also where none is installed.
    import onnxruntime

    major, minor = onnxruntime.__version__.split(".")[:2]
    return int(major), int(minor)


def has(since: Release) -> bool:
    """Whether the installed release has what there is since that one."""
    return installed() >= since


def name_of(release: Release) -> str:
    """A release in words."""
    return ".".join(map(str, release))
