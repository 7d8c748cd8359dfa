"""How a quantized weight is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conformance.drawing.elements import ELEMENTS, Element

__all__ = ["PER_CHANNEL", "PER_TENSOR", "Weight", "Zero", "scale_shape_of"]

PER_CHANNEL = 0
PER_TENSOR = -1
Zero = Literal["none", "random", "default"]
"""Zero points: none, random ones, or those that MatMulNBits takes when it is given none."""


@dataclass(frozen=True)
class Weight:
    """A weight of a MatMul: K rows and N columns as MatMul sees it, and how it is stored."""

    element: str = "uint4"
    k: int = 128
    n: int = 64
    block: int = 32  # elements along K that share a scale, or PER_CHANNEL, or PER_TENSOR
    zero: Zero = "random"
    scale: str = "float"
    n_major: bool = False

    @property
    def kind(self) -> Element:
        return ELEMENTS[self.element]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.k) if self.n_major else (self.k, self.n)

    @property
    def axis(self) -> int:
        """DequantizeLinear's axis: K's for blocks, N's for channels."""
        k_axis = 1 if self.n_major else 0
        return k_axis if self.block > 0 else 1 - k_axis

    @property
    def scale_shape(self) -> list[int]:
        return scale_shape_of(self.shape, self.axis, self.block)


def scale_shape_of(shape: Sequence[int], axis: int, block: int) -> list[int]:
    """The shape that DequantizeLinear wants scales to have."""
    if block == PER_TENSOR:
        return []
    if block == PER_CHANNEL:
        return [shape[axis]]
    scales = list(shape)
    scales[axis] = -(-shape[axis] // block)
    return scales
