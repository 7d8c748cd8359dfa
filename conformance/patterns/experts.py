"""Experts: tables of matrices of which some are looked up when a model runs, and products of all of them."""

from collections.abc import Sequence
from typing import Any

from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.patterns.pattern import ZEROS, Expectation, Pattern, Step, pattern
from ort_qdq_plugin.model.releases import SPARSE_EXPERTS

__all__ = ["EXPERTS"]


def _numbers(d: Draft, name: str, *numbers: int) -> None:
    """A constant that stays in the model where initializers are in other files: ONNX Runtime's shape inference reads it."""
    d.constant_nodes = True
    d.ints(name, numbers)
    d.constant_nodes = False


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
        lambda d: _numbers(d, "first", 0),
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

_H, _I = 64, 96
"""Hidden and inner sizes of a mixture of experts."""
_SILU = 'activation_type = "silu", normalize_routing_weights = 1, k = 2'
_SWIGLU = 'activation_type = "swiglu", swiglu_fusion = 1, normalize_routing_weights = 1, k = 2'


def _mixture(expects: Expectation, name: str, attributes: str = _SILU, **other: Any) -> Pattern:
    """A MoE whose weights are dequantized: `other` is how both are stored, and what else the pattern has."""
    rest = {name: other.pop(name) for name in ("x", "y", "quick", "kind", "precision", "opset") if name in other}
    names = {
        name: other.pop(name, default) for name, default in (("one", "w_d"), ("two", "v_d"), ("b1", "b1"), ("b2", "b2"))
    }
    before, scale = other.pop("before", ""), rest.get("kind", other.get("scale", "float"))
    n = 2 * _I if "swiglu" in attributes else _I
    shapes = {"w": other.pop("w", (_B, n, _H)), "v": other.pop("v", (_B, _H, _I))}

    def draw(d: Draft) -> None:
        d.input("p", (ROWS, _B), scale)
        for weight, shape in shapes.items():
            d.dequantize(weight, shape, **{"axis": 2, "scale_range": (0.001, 0.02), **other})
        d.floats("b1", (_B, n), scale)
        d.floats("b2", (_B, _H), scale)

    inputs = ", ".join(["x", "p", names["one"], names["b1"], names["two"], names["b2"]])
    node = f"{before}  y = com.microsoft.MoE <{attributes}> ({inputs})"
    ends: dict[str, Any] = {"x": (ROWS, _H), "y": (ROWS, _H), "kind": scale}
    return pattern(expects, f"experts-moe-{name}", draw, node, since=SPARSE_EXPERTS, **(ends | rest))


_SWAPPED_WEIGHTS = "w_t = Transpose <perm = [0, 2, 1]> (w_d)  v_t = Transpose <perm = [0, 2, 1]> (v_d)"
_SWAPPED_BOTH: dict[str, Any] = {
    "before": _SWAPPED_WEIGHTS, "one": "w_t", "two": "v_t", "w": (_B, _H, _I), "v": (_B, _I, _H), "axis": 1,
}  # fmt: skip
_MIXTURES = (
    *(_mixture("fused", f"{element}-{suffix}", element=element, zero=zero, quick=element == "uint4")
      for element in ("uint4", "int4") for zero, suffix in ZEROS),
    *(_mixture("either", f"{element}-{suffix}", element=element, zero=zero, opset=25 if element.endswith("2") else 21)
      for element in ("uint2", "int2", "uint8", "int8") for zero, suffix in ZEROS),
    *(_mixture("fused", activation, _SILU.replace("silu", activation)) for activation in ("relu", "gelu", "identity")),
    _mixture("fused", "swiglu", _SWIGLU, quick=True),
    _mixture("fused", "swiglu-of-gpt-oss", f"{_SWIGLU}, swiglu_limit = 7.0, activation_alpha = 1.702, activation_beta = 1.0",
             element="int4", zero="none"),
    _mixture("fused", "all-probabilities", "k = 2", quick=True),
    _mixture("fused", "one-expert", _SILU.replace("k = 2", "k = 1")),
    _mixture("fused", "block-16", block=16),
    _mixture("fused", "one-scale-for-a-row", block=96, w=(_B, _I, 96), v=(_B, 96, _I), x=(ROWS, 96), y=(ROWS, 96), b2=""),
    _mixture("fused", "per-tensor", block=PER_TENSOR),
    _mixture("fused", "without-biases", b1="", b2=""),
    _mixture("fused", "k-major", **_SWAPPED_BOTH, quick=True),
    _mixture("fused", "k-major-int4", **_SWAPPED_BOTH, element="int4"),
    _mixture("fused", "float16", scale="float16", kind="float16", precision="float16"),
    _mixture("fused", "float16-scales", scale="float16", kind="float", precision="float16",
             before="w_c = Cast <to = 1> (w_d)  v_c = Cast <to = 1> (v_d)", one="w_c", two="v_c"),
    _mixture("reason", "blocks-of-8", block=8),
    _mixture("reason", "one-weight-in-float", before="f = Abs(v_d)", two="f"),
)  # fmt: skip


def _router(d: Draft, experts: int = _B) -> None:
    """The two best experts of each token: their numbers `best`, and their weights `share`, which add up to 1."""
    d.floats("router", (_H, experts), low=-1, high=1)
    _numbers(d, "two", 2)
    d.write("logits = MatMul(x, router)  top, best = TopK(logits, two)  share = Softmax <axis = -1> (top)")


def _looked_up_for_each_token(d: Draft) -> None:
    """gpt-oss in PyTorch: the matrices of each token's experts, of 32, multiplied by an Einsum."""
    _router(d, 32)
    d.dequantize("w", (32, _I, _H), axis=2)
    d.dequantize("v", (32, _H, _I), axis=2)
    d.write('w1 = Gather <axis = 0> (w_d, best)  h = Einsum <equation = "tkoi,ti->tko"> (w1, x)')
    d.write("g = Sigmoid(h)  a = Mul(h, g)")
    d.write('w2 = Gather <axis = 0> (v_d, best)  o = Einsum <equation = "tkoi,tki->tko"> (w2, a)')
    d.write('y = Einsum <equation = "tko,tk->to"> (o, share)')


def _unrolled(d: Draft) -> None:
    """Mixtral as Optimum and Olive export it: an expert after the other, with the tokens that chose it, each quantized."""
    _router(d)
    _numbers(d, "last", -1)
    _numbers(d, "one", 1)
    d.write("y0 = Sub(x, x)")
    for expert in range(_B):
        gate, up, down, e = (f"{name}{expert}" for name in ("w", "u", "v", "e"))
        d.constant(raw_tensor(e, TensorProto.INT64, [], expert.to_bytes(8, "little")))
        d.write(f"is_{e} = Equal(best, {e})  as_{e} = Cast <to = 1> (is_{e})  all_{e} = Mul(as_{e}, share)")
        d.write(f"s_{e} = ReduceSum(all_{e}, last)  f_{e} = Squeeze(s_{e}, one)  n_{e} = NonZero(f_{e})")
        d.write(f"t_{e} = Transpose <perm = [1, 0]> (n_{e})  x_{e} = GatherND(x, t_{e})  p_{e} = GatherND(s_{e}, t_{e})")
        for name, shape in ((gate, (_I, _H)), (up, (_I, _H)), (down, (_H, _I))):
            d.dequantize(name, shape, axis=1)
            d.write(f"{name}_t = Transpose <perm = [1, 0]> ({name}_d)")
        d.write(f"g_{e} = MatMul(x_{e}, {gate}_t)  h_{e} = Sigmoid(g_{e})  k_{e} = Mul(g_{e}, h_{e})")
        d.write(f"m_{e} = MatMul(x_{e}, {up}_t)  a_{e} = Mul(k_{e}, m_{e})  o_{e} = MatMul(a_{e}, {down}_t)")
        result = "y" if expert == _B - 1 else f"y{expert + 1}"
        d.write(f'q_{e} = Mul(o_{e}, p_{e})  {result} = ScatterND <reduction = "add"> (y{expert}, t_{e}, q_{e})')


def _all_in_a_batch(d: Draft) -> None:
    """Llama 4 in PyTorch: every token goes to every expert, which ``bmm`` computes, and is weighted."""
    _router(d)
    d.dequantize("w", (_B, _H, _I), axis=1)
    d.dequantize("v", (_B, _I, _H), axis=1)
    _numbers(d, "repeats", _B, 1)
    _numbers(d, "stack", _B, -1, _H)
    _numbers(d, "first", 0)
    _numbers(d, "last", 2)
    d.write("many = Tile(x, repeats)  each = Reshape(many, stack)  h = MatMul(each, w_d)  g = Sigmoid(h)  a = Mul(h, g)")
    d.write("o = MatMul(a, v_d)  all = Softmax <axis = -1> (logits)  turned = Transpose <perm = [1, 0]> (all)")
    d.write("weights = Unsqueeze(turned, last)  q = Mul(o, weights)  y = ReduceSum <keepdims = 0> (q, first)")


def _layer(name: str, draw: Step, fusions: int) -> Pattern:
    ends: dict[str, Any] = {"x": (ROWS, _H), "y": (ROWS, _H), "kind": "float"}
    return pattern("fused", f"experts-layer-{name}", draw, fusions=fusions, quick=True, **ends)


_LAYERS = (
    _layer("looked-up-for-each-token", _looked_up_for_each_token, 2),
    _layer("unrolled", _unrolled, 3 * _B),
    _layer("all-in-a-batch", _all_in_a_batch, 2),
)

EXPERTS = _GATHERED + _ALL + _MIXTURES + _LAYERS
