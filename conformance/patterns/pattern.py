"""What a pattern is: a model, and what must become of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import onnx

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import Dim
from conformance.drawing.weight import Weight, Zero
from ort_qdq_plugin.model.releases import OLDEST, Release

__all__ = [
    "ADD", "GEMM_T", "MATMUL", "MAX_IDS", "TO_FLOAT", "TRANSPOSE", "ZEROS", "Expectation", "Pattern", "Step", "bias",
    "either", "fused", "pattern", "reason",
]  # fmt: skip

Expectation = Literal["fused", "reason", "either", "unfused"]
MAX_IDS = 48
"""Token ids fed to a Gather stay below this; every table has more rows."""
Step = Weight | str | Callable[[Draft], object]
"""A part of a drawing: a weight `w` with its DequantizeLinear `w_d`, nodes in ONNX' text form, or a function that draws."""

# Nodes that many patterns have.
TO_FLOAT = "c = Cast <to = 1> (w_d)"
MATMUL = "y = MatMul(x, w_d)"
TRANSPOSE = "t = Transpose <perm = [1, 0]> (w_d)  y = MatMul(x, t)"
GEMM_T = "y = Gemm <transB = 1> (x, w_d)"
ADD = "h = MatMul(x, w_d)  y = Add(h, bias)"
ZEROS: tuple[tuple[Zero, str], ...] = (("none", "sym"), ("random", "zp"))
"""Without zero points and with, and what that is called in a pattern's name."""


@dataclass(frozen=True)
class Pattern:
    """One row of the table: a model, and what must become of it.

    `expects` is "fused" (exactly `fusions` of them), "reason" (nothing fused, and the report says why), "either" (a
    matter of cost: both are right, the numbers must hold), or "unfused" (nothing fused; nothing to report either, for
    the weight is no constant).
    """

    name: str
    build: Callable[[], onnx.ModelProto]
    expects: Expectation
    group: int = 3  # of the table: 2, the plain layouts, or 3, those that exporters write besides
    precision: Literal["float", "float16", "bfloat16"] = "float"
    fusions: int = 1
    stays: int = 0  # DequantizeLinear nodes that something else still reads
    bias: bool = False
    quick: bool = False
    since: Release = OLDEST  # of ONNX Runtime: with an older one, "fused" is "either"


def pattern(
    expects: Expectation,
    name: str,
    *steps: Step,
    x: Sequence[Dim] | None = None,
    y: Sequence[Dim] | None = None,
    kind: str | None = None,
    x_kind: str | None = None,
    opset: int = 21,
    constant_nodes: bool = False,
    typed_data: bool = False,
    **facts: Any,
) -> Pattern:
    """A pattern whose model is drawn by the steps; `facts` are what else a `Pattern` has.

    Unless a shape or type (`kind`) is given, the input `x` is what the weight takes and the output `y` what it gives.
    """
    weight = next((step for step in steps if isinstance(step, Weight)), Weight())

    def build() -> onnx.ModelProto:
        draft = Draft(name, opset=opset)
        draft.constant_nodes, draft.typed_data = constant_nodes, typed_data
        draft.input("x", (ROWS, weight.k) if x is None else x, x_kind or kind or weight.scale)
        draft.output("y", (ROWS, weight.n) if y is None else y, kind or weight.scale)
        for step in steps:
            if isinstance(step, Weight):
                draft.weight(step)
            elif isinstance(step, str):
                draft.write(step)
            else:
                step(draft)
        return draft.model()

    return Pattern(name, build, expects, **facts)


fused, either, reason = partial(pattern, "fused"), partial(pattern, "either"), partial(pattern, "reason")


def bias(*shape: int, kind: str = "float") -> Step:
    return lambda d: d.floats("bias", shape, kind, low=-1, high=1)
