"""Decoder models as onnxruntime-genai's model builder writes them, offline, from small random checkpoints.

    python genai_models.py FOLDER [--large]

writes FOLDER/<name>/model.onnx for each of the names in `VARIANTS`, or, of a larger checkpoint that takes some GB of memory
and of disk, for each of those in `LARGE_VARIANTS`.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["HEAD_SIZE", "VARIANTS", "Variant", "change_json", "main", "save_in_place"]

VOCABULARY = 512
HIDDEN = 128
HEADS = 4
HEAD_SIZE = HIDDEN // HEADS
# The head prefers token 5 t + 17 (mod 512) after token t: a long cycle, and a clear winner each time.
NEXT_TOKEN = (5, 17)
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


class Size(NamedTuple):
    """Of a checkpoint. The default is that of the tests."""

    vocabulary: int = VOCABULARY
    hidden: int = HIDDEN
    intermediate: int = 2 * HIDDEN
    layers: int = 2
    heads: int = HEADS
    positions: int = 256


LARGE = Size(vocabulary=4096, hidden=1536, intermediate=4096, layers=12, heads=24, positions=2048)


class Variant(NamedTuple):
    """One call of the model builder."""

    checkpoint: str
    options: tuple[str, ...]
    provider: str = "cpu"
    precision: str = "int4"


VARIANTS = {
    "symmetric": Variant("float", ("use_qdq=true",)),
    "asymmetric": Variant("float", ("use_qdq=true", "is_symmetric=false")),
    "gptq": Variant("gptq", ("use_qdq=true", "is_symmetric=false")),
    "gptq_signed": Variant("gptq", ("use_qdq=true",)),
    "qoperator": Variant("float", ()),
    # The builder quantizes no table in QDQ form: a tied one stays float, and the head has weights of its own.
    "tied": Variant("tied", ("use_qdq=true", "is_symmetric=false", "shared_embeddings=false")),
    # It writes float16 for CUDA only.
    "float16": Variant("float", ("use_qdq=true",), "cuda"),
    "float16_gptq": Variant("gptq", ("use_qdq=true", "is_symmetric=false"), "cuda"),
    # Nor does it write whisper in QDQ form: that is left to ONNX Runtime's quantizer.
    "whisper": Variant("whisper", (), precision="fp32"),
}
LARGE_VARIANTS = {
    **{name: VARIANTS[name] for name in ("symmetric", "qoperator", "gptq")},
    "gptq_qoperator": Variant("gptq", ("is_symmetric=false",)),
}


def write_float_checkpoint(folder: Path, size: Size = Size()) -> None:  # noqa: B008 -- it is frozen
    """A random Llama with grouped key/value heads, and a tokenizer of made-up words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(7)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(size.vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast_tokenizer: Any = PreTrainedTokenizerFast
    tokenizer = fast_tokenizer(tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w0", pad_token="w2")
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {
        "hidden_size": size.hidden, "intermediate_size": size.intermediate, "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads, "num_key_value_heads": size.heads // 2,
        "max_position_embeddings": size.positions, **SPECIAL, "vocab_size": size.vocabulary,
    }  # fmt: skip
    model: Any = LlamaForCausalLM(LlamaConfig(initializer_range=0.08, tie_word_embeddings=False, **shape))
    model.eval()
    with torch.no_grad():
        embedding = torch.randn(size.vocabulary, size.hidden)
        factor, offset = NEXT_TOKEN
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight[(factor * torch.arange(size.vocabulary) + offset) % size.vocabulary] = 0.1 * embedding
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
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": group_size, "desc_act": False, "sym": False, "lm_head": True}
    change_json(folder / "config.json", lambda settings: settings.update(quantization_config=gptq))


def write_tied_checkpoint(source: Path, folder: Path) -> None:
    """`source` with a head that has the embedding's weights."""
    from transformers import LlamaForCausalLM

    shutil.copytree(source, folder)
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)


def write_whisper_checkpoint(source: Path, folder: Path) -> None:
    """A random whisper with `source`'s tokenizer."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(3)
    sizes = {"layers": 2, "attention_heads": HEADS, "ffn_dim": 2 * HIDDEN}
    shape: dict[str, Any] = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
    shape |= {"d_model": HIDDEN, "max_target_positions": 64, "decoder_start_token_id": 1}
    config = WhisperConfig(begin_suppress_tokens=None, suppress_tokens=None, **shape, **SPECIAL)
    model: Any = WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


def build(checkpoint: Path, folder: Path, variant: Variant) -> None:
    """What `python -m onnxruntime_genai.models.builder -p int4 -e cpu` does."""
    from onnxruntime_genai.models import builder

    arguments = ("", str(checkpoint), str(folder), variant.precision, variant.provider, str(folder / "cache"))
    prepared = builder.parse_extra_options(*arguments, list(variant.options))
    builder.create_model(*arguments, **prepared)
    if variant.provider != "cpu":  # it is to run on the CPU all the same
        change_json(
            folder / "genai_config.json",
            lambda config: config["model"]["decoder"]["session_options"].update(provider_options=[]),
        )


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    """Change what a file of JSON holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def save_in_place(model: Any, path: Path) -> None:
    """Write a model over another one, with its weights beside it as that one had them."""
    import onnx

    data = path.with_name(f"{path.name}.data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=1024)


def write_large(folder: Path) -> None:
    """Write the variants of the larger checkpoint."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    checkpoints = {name: folder / f"checkpoint_{name}" for name in ("float", "gptq")}
    write_float_checkpoint(checkpoints["float"], LARGE)
    write_gptq_checkpoint(checkpoints["float"], checkpoints["gptq"])
    for name, variant in LARGE_VARIANTS.items():
        build(checkpoints[variant.checkpoint], folder / name, variant)


def main(folder: Path) -> None:
    """Write every variant."""
    import onnx
    from real_support import nbits

    os.environ["HF_HUB_OFFLINE"] = "1"
    checkpoints = {name: folder / f"checkpoint_{name}" for name in ("float", "gptq", "tied", "whisper")}
    write_float_checkpoint(checkpoints["float"])
    for name, write in (
        ("gptq", write_gptq_checkpoint), ("tied", write_tied_checkpoint), ("whisper", write_whisper_checkpoint),
    ):  # fmt: skip
        write(checkpoints["float"], checkpoints[name])
    for name, variant in VARIANTS.items():
        build(checkpoints[variant.checkpoint], folder / name, variant)
    for path in (folder / "whisper").glob("*.onnx"):
        save_in_place(nbits(onnx.load(path), symmetric=False), path)


if __name__ == "__main__":
    (write_large if "--large" in sys.argv else main)(Path(sys.argv[1]))
