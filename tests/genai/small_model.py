"""A small language model that onnxruntime-genai generates with, written without the libraries that usually write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["tokens", "write_model"]

_VOCABULARY, _HIDDEN, _HEAD, _BLOCK = 64, 64, 4, 32


def write_model(folder: Path, seed: int = 0, filename: str = "model.onnx") -> Path:
    """A decoder whose next token depends on the last one alone, with an N-major head; the folder."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (_VOCABULARY, _HIDDEN // 2)).astype(np.uint8)
    constants = [
        helper.make_tensor("w", TensorProto.UINT4, (_VOCABULARY, _HIDDEN), codes.tobytes(), raw=True),
        numpy_helper.from_array(rng.uniform(0.01, 0.1, (_VOCABULARY, _HIDDEN // _BLOCK)).astype(np.float32), "s"),
        numpy_helper.from_array(rng.standard_normal((_VOCABULARY, _HIDDEN)).astype(np.float32), "table"),
        *(numpy_helper.from_array(np.array([value]), name) for name, value in (("zero", 0), ("head", _HEAD))),
        *(numpy_helper.from_array(np.array([value]), name) for name, value in (("last", 2), ("heads", 1))),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1, block_size=_BLOCK),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["logits"]),
        helper.make_node("Slice", ["x", "zero", "head", "last"], ["short"]),
        helper.make_node("Unsqueeze", ["short", "heads"], ["state"]),
        *(
            helper.make_node("Concat", [f"past_key_values.0.{kind}", "state"], [f"present.0.{kind}"], axis=2)
            for kind in ("key", "value")
        ),
    ]
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", name]) for name in ("input_ids", "attention_mask")]
    past, present = (
        [
            helper.make_tensor_value_info(f"{name}.0.{kind}", TensorProto.FLOAT, ["b", 1, name, _HEAD])
            for kind in ("key", "value")
        ]
        for name in ("past_key_values", "present")
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "input_ids", _VOCABULARY])
    graph = helper.make_graph(nodes, "decoder", [*ids, *past], [logits, *present], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, folder / filename, save_as_external_data=True, location=f"{filename}.data", size_threshold=100)
    decoder = {
        "filename": filename, "session_options": {"provider_options": []}, "head_size": _HEAD, "hidden_size": _HIDDEN,
        "num_attention_heads": 1, "num_hidden_layers": 1, "num_key_value_heads": 1,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                   "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
        "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
    }  # fmt: skip
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "context_length": 64, "vocab_size": _VOCABULARY}
    config = {
        "model": {"type": "llama", "decoder": decoder, **special},
        "search": {"max_length": 16, "do_sample": False, "past_present_share_buffer": False},
    }
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def tokens(model: Any) -> list[int]:
    """What an ``onnxruntime_genai.Model`` generates."""
    import onnxruntime_genai

    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=12, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array([[3, 4, 5]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]
