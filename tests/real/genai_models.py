"""Decoder models as onnxruntime-genai's model builder writes them, offline, from small random checkpoints.

    python genai_models.py FOLDER

writes FOLDER/<name>/model.onnx for each of the names in `VARIANTS`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["HEAD_SIZE", "VARIANTS", "VOCABULARY", "Variant", "main"]

VOCABULARY = 512
HIDDEN = 128
HEADS = 4
HEAD_SIZE = HIDDEN // HEADS
# The head prefers token 5 t + 17 (mod 512) after token t: a long cycle, and a clear winner each time.
NEXT_TOKEN = (5, 17)


@dataclass(frozen=True)
class Variant:
    """One call of the model builder."""

    checkpoint: str
    options: tuple[str, ...]


VARIANTS = {
    "symmetric": Variant("float", ("use_qdq=true",)),
    "asymmetric": Variant("float", ("use_qdq=true", "is_symmetric=false")),
    "gptq": Variant("gptq", ("use_qdq=true", "is_symmetric=false")),
    "gptq_signed": Variant("gptq", ("use_qdq=true",)),
    "qoperator": Variant("float", ()),
}


def write_float_checkpoint(folder: Path) -> None:
    """A random Llama with grouped key/value heads, and a tokenizer of made-up words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(7)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = fast_tokenizer(tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w0", pad_token="w2")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=256,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        embedding = torch.randn(VOCABULARY, HIDDEN)
        factor, offset = NEXT_TOKEN
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight[(factor * torch.arange(VOCABULARY) + offset) % VOCABULARY] = 0.1 * embedding
    model.save_pretrained(folder)


def write_gptq_checkpoint(source: Path, folder: Path, group_size: int = 32) -> None:
    """`source` with its linear layers and head rounded to 4 bits and stored the way GPTQ checkpoints are."""
    import torch
    from safetensors.torch import load_file, save_file

    def packed(values: torch.Tensor) -> torch.Tensor:
        """[..., 8] nibbles -> [...] int32, first nibble lowest."""
        words = sum(values[..., place].long() << (4 * place) for place in range(8))
        assert isinstance(words, torch.Tensor)
        return torch.where(words >= 2**31, words - 2**32, words).int().contiguous()

    shutil.copytree(source, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith(("_proj.weight", "lm_head.weight")):
            tensors[name] = weight
            continue
        base = name.removesuffix(".weight")
        n, k = weight.shape
        groups = weight.reshape(n, k // group_size, group_size)
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scales = ((high - low) / 15).half()
        zeros = torch.round(-low / scales.float()).clamp(1, 15).int()
        rounded = torch.round(groups / scales.float()[..., None]).int() + zeros[..., None]
        nibbles = rounded.clamp(0, 15).reshape(n, k)
        tensors[f"{base}.qweight"] = packed(nibbles.T.reshape(k // 8, 8, n).transpose(1, 2))
        tensors[f"{base}.qzeros"] = packed((zeros - 1).T.reshape(k // group_size, n // 8, 8))
        tensors[f"{base}.scales"] = scales.T.contiguous()
        tensors[f"{base}.g_idx"] = (torch.arange(k) // group_size).int()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group_size,
        "desc_act": False,
        "sym": False,
        "lm_head": True,
    }
    (folder / "config.json").write_text(json.dumps(settings))


def build(checkpoint: Path, folder: Path, options: tuple[str, ...]) -> None:
    """What `python -m onnxruntime_genai.models.builder -p int4 -e cpu` does."""
    from onnxruntime_genai.models import builder

    arguments = ("", str(checkpoint), str(folder), "int4", "cpu", str(folder / "cache"))
    prepared = builder.parse_extra_options(*arguments, list(options))
    builder.create_model(*arguments, **prepared)


def main(folder: Path) -> None:
    """Write every variant."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    checkpoints = {"float": folder / "checkpoint_float", "gptq": folder / "checkpoint_gptq"}
    write_float_checkpoint(checkpoints["float"])
    write_gptq_checkpoint(checkpoints["float"], checkpoints["gptq"])
    for name, variant in VARIANTS.items():
        build(checkpoints[variant.checkpoint], folder / name, variant.options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
