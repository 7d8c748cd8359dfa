"""Other ways from a weight to a product: parts of it, multiples, several that are joined, and Einsum."""

from collections.abc import Iterator
from typing import Any

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.pattern import MATMUL, Pattern, Step, fused, reason

__all__ = ["ROUTES"]

_TO_K_N = "t = Transpose <perm = [1, 0]> (v)  y = MatMul(x, t)"
_WIDE, _WIDE_N_MAJOR = Weight(n=192), Weight(n=192, n_major=True)
_SUM = "y = Sum(y0, y1, y2)"


def _ints(**numbers: list[int]) -> Step:
    def draw(draft: Draft) -> None:
        for name, values in numbers.items():
            draft.ints(name, values)

    return draw


def _floats(name: str, *shape: int, kind: str = "float", low: float = 0.5, high: float = 2) -> Step:
    return lambda draft: draft.floats(name, shape, kind, low=low, high=high)


def _three(n_major: bool, made: str, inputs: Step) -> list[Step]:
    """Three parts p0, p1 and p2 of a weight of 192 columns, each of which is multiplied."""
    turned = "".join(f"t{at} = Transpose <perm = [1, 0]> (p{at})  " for at in range(3)) if n_major else ""
    products = "  ".join(f"y{at} = MatMul(x, {'t' if n_major else 'p'}{at})" for at in range(3))
    return [_WIDE_N_MAJOR if n_major else _WIDE, inputs, f"{made}  {turned}{products}  {_SUM}"]


def _parts() -> Iterator[Pattern]:
    for n_major, layout in ((False, "k"), (True, "n")):
        axis = 1 - n_major
        ends: dict[str, Any] = {"y": [ROWS, 64], "fusions": 3}
        yield fused(f"split-{layout}", *_three(
            n_major, f"p0, p1, p2 = Split <axis = {axis}> (w_d, lengths)", _ints(lengths=[64] * 3)
        ), **ends, quick=True)  # fmt: skip
        slices = "  ".join(f"p{at} = Slice(w_d, b{at}, b{at + 1}, axis)" for at in range(3))
        bounds = _ints(b0=[0], b1=[64], b2=[128], b3=[192], axis=[axis])
        yield fused(f"slice-{layout}", *_three(n_major, slices, bounds), **ends, quick=not n_major)
        gathers = "  ".join(f"p{at} = Gather <axis = {axis}> (w_d, i{at})" for at in range(3))
        indices = _ints(i0=list(range(64)), i1=list(range(191, 127, -1)), i2=[*range(32, 64), *range(32)])
        yield fused(f"gather-constant-{layout}", *_three(n_major, gathers, indices), **ends)


def _experts(n_major: bool) -> Pattern:
    """A table of experts, unrolled: each one's weight is a part."""
    shape, swap = ([3, 64, 128], "Transpose <perm = [1, 0]>") if n_major else ([3, 128, 64], "Identity")
    nodes = [
        f"g{at} = Gather(w_d, i{at})  q{at} = Squeeze(g{at}, i0)  t{at} = {swap}(q{at})  y{at} = MatMul(x, t{at})"
        for at in range(3)
    ]
    return fused(
        f"experts-unrolled-{'n' if n_major else 'k'}",
        _ints(i0=[0], i1=[1], i2=[2]),
        lambda d: d.dequantize("w", shape, axis=1 + n_major),
        "  ".join([*nodes, _SUM]),
        fusions=3,
        quick=n_major,
    )


def _joints() -> Iterator[Pattern]:
    def weights(d: Draft, n_major: bool, **given: Any) -> None:
        for at, n in enumerate((64, 32, 96)):
            d.weight(Weight(n=n, n_major=n_major), f"w{at}", **given)

    joint = "Concat <axis = {}> (w0_d, w1_d, w2_d)"
    y: dict[str, Any] = {"y": [ROWS, 192]}
    yield fused("concat-k", lambda d: weights(d, False), f"v = {joint.format(1)}  y = MatMul(x, v)", **y, quick=True)
    yield fused("concat-n", lambda d: weights(d, True), f"v = {joint.format(0)}  {_TO_K_N}", **y)
    for block, name in ((PER_CHANNEL, "channels"), (PER_TENSOR, "tensors")):
        yield fused(f"concat-{name}", lambda d, block=block: weights(d, True, axis=0, block=block, element="int8"),  # type: ignore[misc]
                    f"v = {joint.format(0)}  y = Gemm <transB = 1> (x, v)", **y)  # fmt: skip
    yield fused("concat-without-zero-points",
                lambda d: (d.weight(Weight(zero="none"), "a"), d.weight(Weight(), "b")),
                "v = Concat <axis = -1> (a_d, b_d)  y = MatMul(x, v)", y=[ROWS, 128])  # fmt: skip
    yield fused("concat-along-k", lambda d: (d.weight(Weight(k=64), "a"), d.weight(Weight(k=96), "b")),
                "v = Concat <axis = 0> (a_d, b_d)  y = MatMul(x, v)", x=[ROWS, 160])  # fmt: skip
    yield reason("concat-with-floats", Weight(), _floats("f", 128, 64),
                 "v = Concat <axis = 1> (w_d, f)  y = MatMul(x, v)", y=[ROWS, 128])  # fmt: skip


def _multiples() -> Iterator[Pattern]:
    for n_major in (False, True):
        layout, after = ("n", _TO_K_N) if n_major else ("k", "y = MatMul(x, v)")
        weight = Weight(n_major=n_major)
        column, row = ((64, 1), (128,)) if n_major else ((64,), (128, 1))
        for name, shape in (("columns", column), ("rows", row), ("scalar", ())):
            yield fused(f"mul-{name}-{layout}", weight, _floats("f", *shape), f"v = Mul(w_d, f)  {after}",
                        quick=name == "rows")  # fmt: skip
        yield fused(f"div-{layout}", weight, _floats("f", *column), f"v = Div(w_d, f)  {after}")
    half = Weight("uint8", scale="float16")
    for name, factor in (("columns", (64,)), ("rows", (128, 1))):
        small = _floats("f", *factor, kind="float16", low=2.0**-12, high=2.0**-10)
        yield fused(f"mul-float16-{name}", half, small, "v = Mul(f, w_d)  y = MatMul(x, v)", precision="float16")
    yield reason("mul-elements", Weight(), _floats("f", 128, 64), "v = Mul(w_d, f)  y = MatMul(x, v)")
    for n_major in (False, True):
        # A scale for each row: of DequantizeLinear's axis, or of blocks as long as the other one.
        k_axis = int(n_major)
        stored, turned = ([64, 128], "t = Transpose <perm = [1, 0]> (w_d)") if n_major else ([128, 64], "t = Identity(w_d)")
        for name, how in (("axis", {"axis": k_axis, "block": 0}), ("block", {"axis": 1 - k_axis, "block": 64})):
            yield fused(f"scale-for-each-row-{name}-{'n' if n_major else 'k'}",
                        lambda d, shape=stored, how=how: d.dequantize("w", shape, element="int8", zero="none", **how),  # type: ignore[misc]
                        f"{turned}  y = MatMul(x, t)", quick=name == "axis")  # fmt: skip
    yield reason("zero-point-for-each-row", lambda d: d.dequantize("w", [128, 64], axis=0, block=0), MATMUL)


_HEADS: dict[str, Any] = {"x": [2, ROWS, 128]}
_EINSUMS = (
    fused("einsum-k", Weight(), 'y = Einsum <equation = "bk,kn->bn"> (x, w_d)', quick=True),
    fused("einsum-n", Weight(n_major=True), 'y = Einsum <equation = "...k,nk"> (x, w_d)', quick=True),
    fused("einsum-left", Weight(), 'y = Einsum <equation = "kn,bk->nb"> (w_d, x)', y=[64, ROWS]),
    fused("einsum-heads", lambda d: d.dequantize("w", [128, 4, 16], axis=0),
          'y = Einsum <equation = "btd,dhk->bhtk"> (x, w_d)', **_HEADS, y=[2, 4, ROWS, 16]),
    fused("einsum-of-heads", lambda d: d.dequantize("w", [8, 16, 64], axis=1, block=16),
          'y = Einsum <equation = "bthk,hkd->btd"> (x, w_d)', x=[2, ROWS, 8, 16], y=[2, ROWS, 64]),
    fused("einsum-channels", lambda d: d.dequantize("w", [128, 4, 16], axis=1, block=0, element="int8"),
          'y = Einsum <equation = "btd,dhk->bthk"> (x, w_d)', **_HEADS, y=[2, ROWS, 4, 16]),
    fused("einsum-mul", Weight(scale="float16"), _floats("f", 64, kind="float16"),
          'v = Mul(w_d, f)  y = Einsum <equation = "bk,kn->bn"> (x, v)', precision="float16"),
    reason("einsum-batched", lambda d: d.dequantize("w", [2, 128, 64], axis=1),
           'y = Einsum <equation = "btk,bkn->btn"> (x, w_d)', **_HEADS, y=[2, ROWS, 64]),
    reason("einsum-sum", Weight(), 'y = Einsum <equation = "bk,kn->b"> (x, w_d)', y=[ROWS]),
)  # fmt: skip

ROUTES = (
    *_parts(),
    _experts(False),
    _experts(True),
    *_joints(),
    *_multiples(),
    *_EINSUMS,
    fused("split-along-k", Weight(), _ints(lengths=[64, 64]),
          "a, b = Split(w_d, lengths)  p, q = Split <axis = 1> (x, lengths)  y0 = MatMul(p, a)  y1 = MatMul(q, b)"
          "  y = Add(y0, y1)", fusions=2),
    reason("split-within-a-block", Weight(), _ints(lengths=[48, 80]),
           "a, b = Split(w_d, lengths)  p, q = Split <axis = 1> (x, lengths)  y0 = MatMul(p, a)  y1 = MatMul(q, b)"
           "  y = Add(y0, y1)"),
    fused("expand-batches", Weight(), _ints(to=[3, 128, 64]), "v = Expand(w_d, to)  y = MatMul(x, v)", x=[3, ROWS, 128],
          y=[3, ROWS, 64], quick=True),
    reason("expand-more-batches", Weight(), _ints(to=[3, 128, 64]), "v = Expand(w_d, to)  y = MatMul(x, v)",
           x=[1, ROWS, 128], y=[3, ROWS, 64]),
    fused("part-of-a-joint-of-multiples", Weight(), _floats("f", 64), _ints(b=[32], e=[96], axis=[1]),
          "j = Concat <axis = 1> (w_d, w_d)  m = Slice(j, b, e, axis)  v = Mul(m, f)  y = MatMul(x, v)"),
)  # fmt: skip
