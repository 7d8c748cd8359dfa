"""What came of a model, and what it may cost beyond what stock ONNX Runtime takes for it."""

from dataclasses import dataclass
from typing import NamedTuple

from conformance.drawing.elements import Array

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Failure", "Outcome", "Way"]

MAX_SECONDS = 2
"""Of processor time."""
MAX_BYTES = 256 << 20
"""Of memory."""
Way = str
"""How a model is loaded: "ours", "stock", "unoptimized" (by stock), or "inspect" for its report alone."""


class Failure(NamedTuple):
    """An exception: its class, and its text without addresses, which are never the same."""

    kind: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """What came of a model: `values` of its outputs, or the `error` of `stage` "load" or "run".

    Without either it was loaded and not run, for want of inputs. `fused`: what this package made of it. `seconds` of
    processor time, and how far memory grew beyond what was there before, in `nbytes`.
    """

    stage: str
    error: Failure | None
    values: tuple[Array, ...] | None
    fused: int
    seconds: float
    nbytes: int
