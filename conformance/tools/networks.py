"""The small float networks that the tools quantize: those for tools that take an ONNX model.

Tools that take a torch module get theirs from `writers/torch_networks.py`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from conformance.drawing.draft import Draft

__all__ = ["NETWORKS", "write_networks"]

_IDS = (1, 4)
"""Shape of the token ids: so few that the table is worth a lookup, however small it is."""


def _floats(draft: Draft, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        draft.floats(name, shape, low=-0.1, high=0.1)


def _products(draft: Draft) -> None:
    """Two products with a bias, and one without."""
    _floats(draft, a=(128, 128), a_b=(128,), b=(128, 64), b_b=(64,), c=(64, 32))
    draft.input("x", [4, 128])
    draft.write("h0 = MatMul(x, a) h1 = Add(h0, a_b) h2 = Tanh(h1) h3 = MatMul(h2, b) h4 = Add(h3, b_b) h5 = Tanh(h4)")
    draft.write("y = MatMul(h5, c)")
    draft.output("y", [4, 32])


def _gemms(draft: Draft) -> None:
    """The same with transposed weights, as torch has them."""
    _floats(draft, a=(128, 128), a_b=(128,), b=(64, 128), b_b=(64,), c=(32, 64))
    draft.input("x", [4, 128])
    draft.write("h0 = Gemm <transB = 1> (x, a, a_b) h1 = Tanh(h0) h2 = Gemm <transB = 1> (h1, b, b_b) h3 = Tanh(h2)")
    draft.write("y = Gemm <transB = 1> (h3, c)")
    draft.output("y", [4, 32])


def _tokens(draft: Draft) -> None:
    """A table, one head of attention, and a product of what it gives."""
    _floats(draft, table=(512, 128), q_w=(128, 128), k_w=(128, 128), v_w=(128, 128), o_w=(128, 64))
    draft.input("x", _IDS, "int64")
    draft.write("e = Gather(table, x) q = MatMul(e, q_w) k = MatMul(e, k_w) v = MatMul(e, v_w)")
    draft.write(
        "k_t = Transpose <perm = [0, 2, 1]> (k) s = MatMul(q, k_t) p = Softmax(s) c = MatMul(p, v) y = MatMul(c, o_w)"
    )
    draft.output("y", [*_IDS, 64])


def _conv(draft: Draft) -> None:
    """Two convolutions, and a classifier."""
    _floats(draft, a=(16, 3, 3, 3), a_b=(16,), b=(32, 16, 1, 1), b_b=(32,), c=(10, 32), c_b=(10,))
    draft.input("x", [1, 3, 8, 8])
    draft.write("h0 = Conv <pads = [1, 1, 1, 1]> (x, a, a_b) h1 = Relu(h0) h2 = Conv(h1, b, b_b) h3 = GlobalAveragePool(h2)")
    draft.write("h4 = Flatten(h3) y = Gemm <transB = 1> (h4, c, c_b)")
    draft.output("y", [1, 10])


NETWORKS: Mapping[str, Callable[[Draft], None]] = {"products": _products, "gemms": _gemms, "tokens": _tokens, "conv": _conv}
"""Name -> what draws it."""


def write_networks(folder: Path, opset: int = 21) -> None:
    """Write them all, NAME.onnx each, with the shapes of all values, which some tools want."""
    for name, draw in NETWORKS.items():
        draft = Draft(name, opset=opset)
        draw(draft)
        onnx.save(onnx.shape_inference.infer_shapes(draft.model(name)), folder / f"{name}.onnx")
