"""Models as small as most are: what a fixed cost of loading weighs on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft, stack
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
    draft.output(hidden, ["batch", "tokens", _HIDDEN])
    return draft.model()


def _normal(draft: Draft, x: str) -> str:
    name = f"n{len(draft.nodes)}"
    scale, bias = draft.floats(f"{name}.scale", [_HIDDEN], low=0.9, high=1.1), draft.floats(f"{name}.bias", [_HIDDEN])
    return draft.node("LayerNormalization", [x, scale, bias], axis=-1)


def _chain(product: Callable[[Draft, str, str, int], str], layers: int, width: int) -> onnx.ModelProto:
    draft = Draft(f"{layers} {width}")
    value = draft.input("x", [ROWS, width])
    for layer in range(layers):
        value = draft.node("Tanh", [product(draft, value, f"w{layer}", width)])
    draft.output(value, [ROWS, width])
    return draft.model()


def _float(draft: Draft, x: str, name: str, width: int) -> str:
    return draft.node("MatMul", [x, draft.floats(name, [width, width])])


def _static(draft: Draft, x: str, name: str, width: int) -> str:
    """Activations are quantized as well, so that nothing can be fused."""
    scale = draft.scalar(f"{name}.scale", 0.05)
    zero = draft.constant(raw_tensor(f"{name}.zero", TensorProto.UINT8, [], bytes([128])))
    activation = draft.node("DequantizeLinear", [draft.node("QuantizeLinear", [x, scale, zero]), scale, zero])
    weight = draft.weight(Weight("int8", width, width, PER_CHANNEL, zero="default"), name)
    return draft.node("MatMul", [activation, weight])


SMALL_MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], bool]] = {
    "encoder, 54 MB, inline": (_encoder, False),
    "encoder, 54 MB, external": (_encoder, True),
    "MLP, 1 MB": (partial(stack, 8, 512), False),
    "QDQ stack, 64 MB, external": (partial(stack, 24, 2048), True),
    "static QDQ, 20 MB": (partial(_chain, _static, 20, 1024), False),
    "float, 1 kB": (partial(_chain, _float, 1, 16), False),
    "float, 50 MB, inline": (partial(_chain, _float, 12, 1024), False),
    "float, 50 MB, external": (partial(_chain, _float, 12, 1024), True),
}
"""What each is called -> what makes it, and whether its weights are in a file of their own.

Tensors of the others say explicitly that their location is DEFAULT, as reading external data and saving a model leaves them.
"""


def write_small_model(title: str, folder: Path) -> str:
    """Write one of these models into a folder that does not exist yet; its path."""
    make, external = SMALL_MODELS[title]
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    model = make()
    for tensor in model.graph.initializer:
        tensor.data_location = TensorProto.DEFAULT
    onnx.save(model, path, save_as_external_data=external, location="model.onnx.data", size_threshold=1024)
    return str(path)
