"""Experts: tables of matrices of which some are looked up when a model runs, and products of all of them."""

from collections.abc import Sequence
from typing import Any

from conformance.drawing.draft import ROWS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.patterns.pattern import ZEROS, Expectation, Pattern, Step, pattern

__all__ = ["EXPERTS"]

_E, _K, _N = 50, 96, 64
"""More experts than ids (`MAX_IDS`)."""
_LAYOUTS = {"k-major": ((_E, _K, _N), 1), "n-major": ((_E, _N, _K), 2)}
"""How they are stored, and the axis of their blocks."""


def _looked_up(
    expects: Expectation, name: str, nodes: str, layout: str = "n-major", ids: Sequence[int] = (1,), **other: Any
) -> Pattern:
    """Experts looked up by the ids `e`, and what makes of them the product `y`."""
    shape, axis = _LAYOUTS[layout]
    rest = {name: other.pop(name) for name in ("x", "y", "quick", "kind", "precision", "opset") if name in other}
    steps: tuple[Step, ...] = (
        lambda d: d.input("e", ids, "int64"),
        lambda d: d.ints("first", [0]),
        lambda d: d.dequantize("w", shape, **{"axis": axis, **other}),
        nodes,
    )
    return pattern(expects, f"experts-{name}", *steps, **{"x": (ROWS, _K), "y": (ROWS, _N), **rest})


_GATHER = "g = Gather <axis = 0> (w_d, e)  s = Squeeze(g, first)"
_TO_PRODUCT = {
    "k-major": f"{_GATHER}  y = MatMul(x, s)",
    "n-major": f"{_GATHER}  t = Transpose <perm = [1, 0]> (s)  y = MatMul(x, t)",
}
_GEMM = "y = Gemm <transB = 1> (x, s)"
_SWAPPED = "v = Transpose <perm = [0, 2, 1]> (w_d)  g = Gather <axis = 0> (v, e)  s = Squeeze(g, first)"
_BATCHED = "g = Gather <axis = 0> (w_d, e)  t = Transpose <perm = [0, 2, 1]> (g)  y = MatMul(x, t)"
_ONE = "s = Gather <axis = 0> (w_d, e)"

_GATHERED = (
    *(_looked_up("fused", f"gather-{layout}-{element}-{suffix}", _TO_PRODUCT[layout], layout, element=element, zero=zero,
                 opset=25 if element.endswith("2") else 21, quick=element == "uint4")
      for layout in _LAYOUTS for element in ("uint2", "int2", "uint4", "int4", "uint8", "int8") for zero, suffix in ZEROS),
    _looked_up("fused", "gather-scalar", f"{_ONE}  {_GEMM}", ids=()),
    _looked_up("fused", "gather-scalar-k-major", f"{_ONE}  y = MatMul(x, s)", "k-major", ids=()),
    _looked_up("fused", "gather-gemm", f"{_GATHER}  {_GEMM}"),
    _looked_up("fused", "gather-transposed-table", f"{_SWAPPED}  y = MatMul(x, s)"),
    _looked_up("fused", "gather-transposed-table-k-major", f"{_SWAPPED}  {_GEMM}", "k-major"),
    _looked_up("fused", "gather-float16", f"{_GATHER}  {_GEMM}", scale="float16", kind="float16", precision="float16"),
    _looked_up("fused", "gather-float16-cast", f"{_GATHER}  c = Cast <to = 1> (s)  y = Gemm <transB = 1> (x, c)",
               scale="float16", kind="float", precision="float16"),
    _looked_up("fused", "gather-per-tensor", f"{_GATHER}  {_GEMM}", block=PER_TENSOR),
    _looked_up("fused", "gather-block-of-a-row", f"{_GATHER}  {_GEMM}", block=_K),
    _looked_up("fused", "gather-block-48", _TO_PRODUCT["k-major"], "k-major", block=48),
    # A matrix for each token, as exporters of Mixtral's and gpt-oss' layers in PyTorch write it.
    _looked_up("fused", "gather-a-batch", _BATCHED, ids=(3,), x=(3, ROWS, _K), y=(3, ROWS, _N), quick=True),
    _looked_up("fused", "gather-a-batch-k-major", "g = Gather <axis = 0> (w_d, e)  y = MatMul(x, g)", "k-major",
               ids=(2, 3), x=(2, 3, ROWS, _K), y=(2, 3, ROWS, _N)),
    _looked_up("fused", "gather-blocks-along-n", f"{_GATHER}  y = MatMul(x, s)", "k-major", axis=2),
    _looked_up("reason", "gather-blocks-of-experts", f"{_GATHER}  {_GEMM}", axis=0, block=10),
)  # fmt: skip

_B, _MATMUL = 4, "y = MatMul(x, w_d)"
_SWAP = "t = Transpose <perm = [0, 2, 1]> (w_d)  y = MatMul(x, t)"


def _all(expects: Expectation, name: str, nodes: str, layout: str = "n-major", **other: Any) -> Pattern:
    """Products of all experts, of which there are few."""
    (_, *matrix), axis = _LAYOUTS[layout]
    rest = {name: other.pop(name) for name in ("x", "y", "quick", "kind", "precision", "opset") if name in other}
    draw: Step = lambda d: d.dequantize("w", (_B, *matrix), **{"axis": axis, **other})  # noqa: E731
    ends: dict[str, Any] = {"x": (_B, ROWS, _K), "y": (_B, ROWS, _N)}
    return pattern(expects, f"experts-all-{name}", draw, nodes, **(ends | rest))


_ALL = (
    *(_all("fused", f"{layout}-{element}-{suffix}", _MATMUL if layout == "k-major" else _SWAP, layout, element=element,
           zero=zero, quick=element == "uint4")
      for layout in _LAYOUTS for element in ("uint4", "int4", "uint8", "int8") for zero, suffix in ZEROS),
    _all("fused", "one-activation", _SWAP, x=(1, ROWS, _K)),
    _all("fused", "one-matrix-of-activations", _MATMUL, "k-major", x=(ROWS, _K), quick=True),
    _all("fused", "batches", _SWAP, x=(2, _B, ROWS, _K), y=(2, _B, ROWS, _N)),
    _all("fused", "transposed-by-the-product", "y = com.microsoft.FusedMatMul <transB = 1> (x, w_d)"),
    _all("fused", "float16", _SWAP, scale="float16", kind="float16", precision="float16"),
    _all("fused", "float16-cast", f"c = Cast <to = 1> (w_d)  {_SWAP.replace('w_d', 'c')}", scale="float16", kind="float",
         precision="float16"),
    _all("fused", "per-tensor", _MATMUL, "k-major", block=PER_TENSOR),
    _all("fused", "a-scale-for-each-expert", _SWAP, axis=0, block=PER_CHANNEL, element="uint8"),
    _all("fused", "a-scale-for-each-column", _SWAP, axis=1, block=PER_CHANNEL),
    _all("fused", "block-48", _MATMUL, "k-major", block=48),
    _all("reason", "scaled-by-the-product", "y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (x, w_d)"),
    _all("reason", "on-the-left", "y = MatMul(w_d, x)", x=(_B, _K, ROWS), y=(_B, _N, ROWS)),
    _all("reason", "blocks-along-n", _MATMUL, "k-major", axis=2),
)  # fmt: skip

EXPERTS = _GATHERED + _ALL
