"""The models that both sides load: one shell around four ways of writing the same product."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options
from tests.support import Form

__all__ = [
    "DENOTATION", "EXTENSIONS", "K_MAJOR", "MATMUL_NBITS", "MODELS", "N_MAJOR", "SHIFT", "UNQUANTIZED", "K", "Model", "N",
    "with_operator",
]  # fmt: skip

K, N, BLOCK = 128, 64, 32
SHIFT = "shift"
DENOTATION = "DATA_BATCH"
EXTENSIONS = "ai.onnx.contrib"
K_MAJOR, N_MAJOR = "K-major, external data", "N-major, inline"
UNQUANTIZED, MATMUL_NBITS = "nothing quantized", "MatMulNBits, external data"


@dataclass(frozen=True)
class Model:
    """A model to compare with: how its product is drawn, how it is stored, and what this package makes of it.

    `fused` products are fused; `route` is the report's. `options` and `tolerance`, of the largest value, are for products
    that stock ONNX Runtime leaves unfused: they are computed in float there.
    """

    draw: Callable[[Draft], str]
    form: Form
    fused: int
    route: str = "borrowed"
    options: Options = field(default_factory=Options)
    tolerance: float = 0.0

    def proto(self, seed: str = "surface") -> onnx.ModelProto:
        """The model, with something in everything that a session can tell of it."""
        draft = Draft(seed)
        draft.node("Identity", [draft.input("x", [ROWS, K])], "same")
        product = self.draw(draft)
        draft.floats(SHIFT, [N])
        draft.input(SHIFT, [N])
        draft.node("Add", [product, SHIFT], draft.output("y", [ROWS, N]))
        draft.node("Shape", ["x"], "size")
        draft.output("size", [2], "int64")
        model = draft.model()
        model.graph.input[0].type.tensor_type.shape.dim[0].denotation = DENOTATION
        model.producer_name, model.producer_version, model.domain, model.model_version = "someone", "2", "some.domain", 7
        model.doc_string, model.graph.doc_string = "a model", "a graph"
        helper.set_model_props(model, {"key": "value", "empty": "", "large": "v" * 10_000})
        return model


def _k_major(draft: Draft) -> str:
    return draft.node("MatMul", ["same", draft.weight(Weight(k=K, n=N, block=BLOCK))], "p")


def _n_major(draft: Draft) -> str:
    dequantized = draft.weight(Weight(k=K, n=N, block=BLOCK, n_major=True))
    return draft.node("MatMul", ["same", draft.node("Transpose", [dequantized], "t", perm=[1, 0])], "p")


def _float(draft: Draft) -> str:
    return draft.node("MatMul", ["same", draft.floats("w", [K, N])], "p")


def _matmul_nbits(draft: Draft) -> str:
    draft.quantized("w", "uint8", [N, K // BLOCK, BLOCK // 2])
    draft.floats("w_s", [N * K // BLOCK])
    sizes = {"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    return draft.node("MatMulNBits", ["same", "w", "w_s"], "p", domain=MS, **sizes)


MODELS: Mapping[str, Model] = {
    K_MAJOR: Model(_k_major, "external", 1),
    N_MAJOR: Model(_n_major, "file", 1, options=Options(accuracy_level=0), tolerance=1e-5),
    UNQUANTIZED: Model(_float, "file", 0, route="stock"),
    MATMUL_NBITS: Model(_matmul_nbits, "external", 0),
}


def with_operator(model: onnx.ModelProto, operator: str, domain: str, element: int, rank: int = 1) -> onnx.ModelProto:
    """The model with an operator of onnxruntime-extensions beside its product: given -> made."""
    model.graph.node.append(helper.make_node(operator, ["given"], ["made"], domain=domain))
    model.graph.input.append(helper.make_tensor_value_info("given", element, ["length"]))
    model.graph.output.append(helper.make_tensor_value_info("made", element, [None] * rank))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model
