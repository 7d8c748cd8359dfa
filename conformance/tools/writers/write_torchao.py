"""torchao: weights of 4 and 8 bits, through torch's exporter."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch_networks import export, network
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    quantize_,
)

SETTINGS: dict[str, Callable[[], Any]] = {
    "int8": Int8WeightOnlyConfig,
    "int8 blocks": lambda: Int8WeightOnlyConfig(granularity=PerGroup(32)),
    "int4 blocks": lambda: IntxWeightOnlyConfig(torch.int4, PerGroup(32)),
    "int4 asymmetric": lambda: IntxWeightOnlyConfig(torch.int4, PerGroup(32), MappingType.ASYMMETRIC),
    "int4": lambda: IntxWeightOnlyConfig(torch.int4, PerAxis(0)),
    "int4 dynamic": lambda: Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(32)),
}


def _is_table(module: Any, name: str) -> bool:
    return isinstance(module, torch.nn.Embedding)


def main(networks: Path, folder: Path) -> None:
    for setting, configuration in SETTINGS.items():
        for name in ("linear", "tokens"):
            model = network(name)
            quantize_(model, configuration())
            if isinstance(configuration(), IntxWeightOnlyConfig):
                quantize_(model, configuration(), _is_table)
            export(model, name, folder / f"{setting} {name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
