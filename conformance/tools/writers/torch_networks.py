"""The small networks for tools that take a torch module, and torch's exporter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["EXAMPLES", "NETWORKS", "export", "network"]


# The exporter folds constants of up to 8192 elements, so these have more.


def _linear() -> Any:
    return nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 96), nn.Tanh(), nn.Linear(96, 96, bias=False))


def _tokens() -> Any:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0, batch_first=True)
    return nn.Sequential(nn.Embedding(512, 128), layer, nn.Linear(128, 96))


def _conv() -> Any:
    convolutions: list[Any] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 144, 1)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(144, 64))


NETWORKS: dict[str, Callable[[], Any]] = {"linear": _linear, "sequence": _linear, "tokens": _tokens, "conv": _conv}
EXAMPLES: dict[str, Any] = {
    "linear": torch.ones(4, 128),
    "sequence": torch.ones(1, 4, 128),  # whose products are MatMul, not Gemm
    "tokens": torch.ones(1, 4, dtype=torch.int64),
    "conv": torch.ones(1, 3, 8, 8),
}
"""What each network takes; the shapes are those of the models."""


def network(name: str) -> Any:
    """One of NETWORKS, with random weights that are the same on every call."""
    torch.manual_seed(5)
    torch.backends.mha.set_fastpath_enabled(False)
    return NETWORKS[name]().eval()


def export(model: Any, name: str, path: Path, dynamo: bool = True, **how: Any) -> None:
    """Write what became of a network with torch's exporter."""
    names = {"input_names": ["x"], "output_names": ["y"], "dynamo": dynamo, "verbose": False}
    torch.onnx.export(model, (EXAMPLES[name],), path, **{**names, **({"external_data": False} if dynamo else {}), **how})
