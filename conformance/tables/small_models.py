"""Models as small as most are: what a fixed cost of loading weighs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import PER_CHANNEL, Weight

__all__ = ["SMALL_MODELS", "write_small_model"]

_HIDDEN, _WIDE, _HEADS, _LAYERS, _WORDS = 384, 1536, 12, 6, 30522


def _encoder() -> onnx.ModelProto:
    """An encoder of MiniLM's size: 36 quantized products with biases, and a table of words in float; 54 MB."""
    draft = Draft("encoder")
    ids = draft.input("ids", ["batch", "tokens"], "int64")
    words = draft.floats("words", [_WORDS, _HIDDEN], low=-0.1, high=0.1)
    hidden = _normal(draft, draft.node("Gather", [words, ids]))
    split, merged = draft.ints("split", [0, 0, _HEADS, _HIDDEN // _HEADS]), draft.ints("merged", [0, 0, _HIDDEN])

    def linear(x: str, k: int, n: int) -> str:
        name = f"w{len(draft.nodes)}"
        product = draft.node("MatMul", [x, draft.weight(Weight(k=k, n=n), name)])
        return draft.node("Add", [draft.floats(f"{name}.bias", [n]), product])

    def heads(x: str, perm: list[int]) -> str:
        return draft.node("Transpose", [draft.node("Reshape", [x, split])], perm=perm)

    for _ in range(_LAYERS):
        query, value = (heads(linear(hidden, _HIDDEN, _HIDDEN), [0, 2, 1, 3]) for _ in range(2))
        key = heads(linear(hidden, _HIDDEN, _HIDDEN), [0, 2, 3, 1])
        shares = draft.node("Softmax", [draft.node("MatMul", [query, key])], axis=-1)
        mixed = draft.node("Transpose", [draft.node("MatMul", [shares, value])], perm=[0, 2, 1, 3])
        attention = linear(draft.node("Reshape", [mixed, merged]), _HIDDEN, _HIDDEN)
        hidden = _normal(draft, draft.node("Add", [attention, hidden]))
        wide = draft.node("Gelu", [linear(hidden, _HIDDEN, _WIDE)])
        hidden = _normal(draft, draft.node("Add", [linear(wide, _WIDE, _HIDDEN), hidden]))
    draft.node("Identity", [hidden], "y")
    draft.output("y", ["batch", "tokens", _HIDDEN])
    return draft.model()


def _normal(draft: Draft, x: str) -> str:
    name = f"n{len(draft.nodes)}"
    scale, bias = draft.floats(f"{name}.scale", [_HIDDEN], low=0.9, high=1.1), draft.floats(f"{name}.bias", [_HIDDEN])
    return draft.node("LayerNormalization", [x, scale, bias], axis=-1)


def _stack(layers: int, width: int) -> onnx.ModelProto:
    """Square quantized products, one behind the other."""
    draft = Draft(f"stack-{layers}-{width}")
    value = draft.input("x", [ROWS, width])
    for layer in range(layers):
        value = draft.node("Tanh", [draft.node("MatMul", [value, draft.weight(Weight(k=width, n=width), f"w{layer}")])])
    draft.node("Identity", [value], "y")
    draft.output("y", [ROWS, width])
    return draft.model()


def _static(layers: int = 20, width: int = 1024) -> onnx.ModelProto:
    """A model whose activations are quantized as well: 20 MB in which nothing can be fused."""
    draft = Draft("static")
    value = draft.input("x", [ROWS, width])
    scale, zero = draft.scalar("scale", 0.05), draft.constant(raw_tensor("zero", TensorProto.UINT8, [], bytes([128])))
    for layer in range(layers):
        quantized = draft.node("QuantizeLinear", [value, scale, zero])
        activation = draft.node("DequantizeLinear", [quantized, scale, zero])
        weight = draft.weight(Weight("int8", width, width, PER_CHANNEL, zero="default"), f"w{layer}")
        value = draft.node("Relu", [draft.node("MatMul", [activation, weight])])
    draft.node("Identity", [value], "y")
    draft.output("y", [ROWS, width])
    return draft.model()


def _float(layers: int = 5, width: int = 1024) -> onnx.ModelProto:
    """20 MB of float products."""
    draft = Draft("float")
    value = draft.input("x", [ROWS, width])
    for layer in range(layers):
        value = draft.node("Relu", [draft.node("MatMul", [value, draft.floats(f"w{layer}", [width, width])])])
    draft.node("Identity", [value], "y")
    draft.output("y", [ROWS, width])
    return draft.model()


SMALL_MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], bool]] = {
    "encoder, 54 MB, inline": (_encoder, False),
    "encoder, 54 MB, external": (_encoder, True),
    "MLP, 1 MB": (lambda: _stack(8, 512), False),
    "QDQ stack, 64 MB, external": (lambda: _stack(24, 2048), True),
    "static QDQ, 20 MB": (_static, False),
    "float, 20 MB": (_float, False),
}
"""What each is called -> what makes it, and whether its weights are in a file of their own.

Tensors of the others say explicitly that their location is DEFAULT, as reading external data and saving a model leaves them.
"""


def write_small_model(title: str, folder: Path) -> Path:
    """Write one of the models into a folder that does not exist yet; its path."""
    make, external = SMALL_MODELS[title]
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    model = make()
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT
    data = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 1024} if external else {}
    onnx.save(model, path, **data)  # type: ignore[arg-type]
    return path
