"""Nodes that move elements, drawn at random."""

from collections.abc import Callable

from onnx import TensorProto

from tests.model.drawing import Drawing


def _resize(d: Drawing) -> None:
    dims = d.dims(2, 4)
    image = d.value(dims)
    if d.opset < 11:
        d.node(image, d.constant([2] * len(dims), "float32"))
        return
    if d.chance(0.5):
        d.node(image, "", d.constant([2] * len(dims), "float32") if d.chance(0.7) else d.value([len(dims)]))
        return
    places = range(len(dims))
    axes = d.rng.sample(places, d.number(1, len(dims))) if d.opset >= 18 and d.chance(0.3) else None
    policy = d.perhaps(d.pick("stretch", "not_larger"), 0.2) if d.opset >= 18 else None
    scales = d.constant([], "float32") if d.opset < 13 or d.chance(0.4) else ""
    sizes = d.numbers([d.number(1, 9) for _ in (axes or places)])
    d.node(image, "", scales, sizes, axes=axes, keep_aspect_ratio_policy=policy)


def _moved_depth(d: Drawing) -> None:
    d.node(d.value([d.dim(), d.pick(8, "c"), d.pick(4, "h"), d.pick(4, "w")]), blocksize=2)


def _transpose(d: Drawing) -> None:
    dims = d.dims(0)
    d.node(d.value(dims), perm=d.perhaps(d.rng.sample(range(len(dims)), len(dims))) if dims else None)


def _reshape(d: Drawing) -> None:
    dims = d.dims()
    target = [d.pick(0, 0, 1, 2) for _ in range(d.number(1, len(dims)))]
    if d.chance(0.5):
        target[d.number(0, len(target) - 1)] = -1
    allowzero = d.perhaps(d.number(0, 1), 0.2) if d.opset >= 14 else None
    d.node(d.value(dims if d.chance(0.85) else None), d.numbers(target), allowzero=allowzero)


def _squeeze(d: Drawing) -> None:
    dims = [d.pick(1, 1, 2, "a", None) for _ in range(d.number(1, 4))]
    most = len(dims) - (d.op_type == "Squeeze")
    axes, value = [d.number(-most - 1 if d.opset >= 11 else 0, most)], d.value(dims)
    if d.op_type == "Squeeze" and d.chance(0.3):
        d.node(value)
    elif d.opset < 13:
        d.node(value, axes=axes)
    else:
        d.node(value, d.numbers(axes))


def _flatten(d: Drawing) -> None:
    dims = d.dims(0)
    d.node(d.value(dims), axis=d.perhaps(d.number(0 if d.opset < 11 else -len(dims), len(dims))))


def _shape(d: Drawing) -> None:
    ends = {"start": d.perhaps(d.number(-5, 5)), "end": d.perhaps(d.number(-5, 5))} if d.opset >= 15 else {}
    d.node(d.value(d.dims(0)), **ends)


def _concat(d: Drawing) -> None:
    dims = d.dims()
    axis = d.number(0 if d.opset < 11 else -len(dims), len(dims) - 1)
    parts = []
    for _ in range(d.number(1, 3)):
        part = [d.pick(dim, "z", None) for dim in dims]
        part[axis] = d.dim()
        parts.append(d.value(part))
    d.node(*parts, axis=axis)


def _split(d: Drawing) -> None:
    dims, count = d.dims(), d.number(1, 3)
    axis = d.number(-len(dims), len(dims) - 1)
    whole = dims[axis]
    sizes = [2] * count
    if isinstance(whole, int):
        ends = sorted(d.number(0, whole) for _ in range(count - 1))
        sizes = [end - start for start, end in zip([0, *ends], [*ends, whole], strict=True)]
    value = d.value(dims)
    if d.opset < 13:
        d.node(value, outputs=count, axis=axis, split=d.perhaps(sizes))
    elif d.chance(0.6):
        d.node(value, d.numbers(sizes), outputs=count, axis=axis)
    else:
        d.node(value, outputs=count, axis=axis, num_outputs=count if d.opset >= 18 else None)


def _slice(d: Drawing) -> None:
    dims = d.dims()
    axes = d.rng.sample(range(len(dims)), d.number(1, len(dims)))
    starts = [d.pick(0, 1, 2, 3, 7, -1, -2, -3) for _ in axes]
    ends = [d.pick(0, 1, 3, 7, -1, -2, -3, 2**31 - 1, 2**63 - 1, -(2**63)) for _ in axes]
    inputs = [d.value(dims), d.numbers(starts), d.numbers(ends)]
    if d.chance(0.8):
        inputs.append(d.numbers([axis - len(dims) if d.chance(0.3) else axis for axis in axes]))
        if d.chance(0.5):
            inputs.append(d.numbers([d.pick(1, 1, 2, -1, -2) for _ in axes]))
    d.node(*inputs)


def _pad(d: Drawing) -> None:
    dims = d.dims()
    if d.opset < 11:
        d.node(d.value(dims), pads=[d.number(0, 2) for _ in range(2 * len(dims))])
        return
    axes = d.rng.sample(range(len(dims)), d.number(1, len(dims))) if d.opset >= 18 and d.chance(0.4) else None
    pads = d.numbers([d.number(0, 2) for _ in range(2 * len(axes or dims))])
    d.node(d.value(dims), pads, *(["", d.numbers(axes)] if axes else []))


def _expand(d: Drawing) -> None:
    dims = d.dims()
    target = [d.pick(1, dim if isinstance(dim, int) else 5) for dim in dims]
    d.node(d.value(dims), d.numbers([3] * d.number(0, 2) + target[d.number(0, len(target)) :]))


def _tile(d: Drawing) -> None:
    dims = d.dims()
    d.node(d.value(dims), d.numbers([d.number(1, 3) for _ in dims]))


def _gather(d: Drawing) -> None:
    dims, indices = d.dims(), d.dims(0, 3)
    axis = d.perhaps(d.number(-len(dims), len(dims) - 1))
    if d.op_type == "GatherElements":
        indices = [d.dim() for _ in dims]
    d.node(d.value(dims), d.value(indices, TensorProto.INT64), axis=axis)


def _gather_parts(d: Drawing) -> None:
    dims = d.dims()
    indices = [*d.dims(0, 2), d.pick(1, len(dims), "k")]
    batch_dims = d.perhaps(d.number(0, 1), 0.3) if d.opset >= 12 else None
    d.node(d.value(dims), d.value(indices, TensorProto.INT64), batch_dims=batch_dims)


MOVES: dict[str, Callable[[Drawing], None]] = {
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _moved_depth),
    "Resize": _resize,
    "Transpose": _transpose,
    "Reshape": _reshape,
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
    "Flatten": _flatten,
    "Shape": _shape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    **dict.fromkeys(("Gather", "GatherElements"), _gather),
    "GatherND": _gather_parts,
}
"""Operator -> what draws it."""
