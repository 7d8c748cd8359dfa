"""torch's own fake quantization of weights, through its two exporters, and what torchao's PT2E makes of it."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch_networks import EXAMPLES, NETWORKS, export, network
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer

_LARGEST = 127


class _FakeQuantized(nn.Module):  # type: ignore[misc]  # torch is untyped
    """A parametrization: the weight, quantized and dequantized."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        scales = weight.detach().flatten(1).abs().amax(1) / _LARGEST
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros_like(scales, dtype=torch.int32))

    def forward(self, weight: Any) -> Any:
        return torch.fake_quantize_per_channel_affine(weight, self.scales, self.zeros, 0, -_LARGEST - 1, _LARGEST)


def _fake_quantized(name: str) -> Any:
    model = network(name)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            parametrize.register_parametrization(module, "weight", _FakeQuantized(module.weight))
    return model


def _pt2e(name: str) -> Any:
    configuration = x86_inductor_quantizer.get_default_x86_inductor_quantization_config()
    quantizer = x86_inductor_quantizer.X86InductorQuantizer().set_global(configuration)
    example = (EXAMPLES[name],)
    prepared = prepare_pt2e(torch.export.export(network(name), example).module(), quantizer)
    prepared(*example)
    return convert_pt2e(prepared)


def main(networks: Path, folder: Path) -> None:
    for name in NETWORKS:
        export(_fake_quantized(name), name, folder / f"dynamo {name}.onnx")
        export(_fake_quantized(name), name, folder / f"script {name}.onnx", dynamo=False)
    for name in ("linear", "conv"):
        export(_pt2e(name), name, folder / f"pt2e {name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
