"""A small language model that onnxruntime-genai generates with, written without the libraries that usually write them."""

import json
from pathlib import Path
from typing import Any

import onnx

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight

__all__ = ["tokens", "write_model"]

_VOCABULARY, _HIDDEN, _HEAD = 64, 64, 4


def write_model(folder: Path, seed: int = 0, filename: str = "model.onnx") -> Path:
    """A decoder whose next token depends on the last one alone, with an N-major head; the folder."""
    draft = Draft(f"next {seed}")
    for name in ("input_ids", "attention_mask"):
        draft.input(name, ["b", name], "int64")
    draft.floats("table", (_VOCABULARY, _HIDDEN), low=-1, high=1)
    weight = draft.weight(Weight(k=_HIDDEN, n=_VOCABULARY, n_major=True, zero="none"), scale_range=(0.01, 0.1))
    for name, value in {"zero": 0, "head": _HEAD, "last": 2, "heads": 1}.items():
        draft.ints(name, [value])
    draft.write(f"x = Gather(table, input_ids)  t = Transpose <perm = [1, 0]> ({weight})  logits = MatMul(x, t)")
    draft.write("short = Slice(x, zero, head, last)  state = Unsqueeze(short, heads)")
    draft.output("logits", ["b", "input_ids", _VOCABULARY])
    for kind in ("key", "value"):
        past = draft.input(f"past_key_values.0.{kind}", ["b", 1, "past", _HEAD])
        draft.output(draft.node("Concat", [past, "state"], f"present.0.{kind}", axis=2), ["b", 1, "present", _HEAD])
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        draft.model(), folder / filename, save_as_external_data=True, location=f"{filename}.data", size_threshold=100
    )
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


def tokens(model: Any, prompt: tuple[int, ...] = (3, 4, 5), length: int = 12, **inputs: Any) -> list[int]:
    """What an ``onnxruntime_genai.Model`` generates."""
    import onnxruntime_genai

    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    for name, value in inputs.items():
        generator.set_model_input(name, value)
    generator.append_tokens(list(prompt))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]
