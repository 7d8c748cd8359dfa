"""What a pattern is: a model, and what is to become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx

__all__ = ["LARGEST_BLOCK", "MAX_IDS", "Expectation", "Pattern", "Precision"]

Expectation = Literal["fused", "reason", "either", "unfused"]
Precision = Literal["float", "float16", "bfloat16"]
LARGEST_BLOCK = 256
"""Of the block sizes that MatMulNBits' kernel takes in every release."""
MAX_IDS = 48
"""Token ids fed to a Gather stay below this; every table has more rows."""


@dataclass(frozen=True)
class Pattern:
    """One row of the table: a model, and what is to become of it.

    `expects` is "fused" (exactly `fusions` of them), "reason" (nothing fused, and the report says why), "either" (a
    matter of cost: both are right, the numbers must hold), or "unfused" (nothing fused; nothing to report either, for
    the weight is no constant).
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    expects: Expectation
    group: int  # of the table: 2, the plain layouts, or 3, those that exporters write besides
    note: str = ""
    precision: Precision = "float"
    fusions: int = 1
    stays: int = 0  # DequantizeLinear nodes that something else still reads
    bias: bool = False
    quick: bool = False
