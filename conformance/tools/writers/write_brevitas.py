"""Brevitas: QCDQ export by both of torch's exporters."""

import sys
from pathlib import Path
from typing import Any

from brevitas import nn as qnn
from brevitas.export import export_onnx_qcdq
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    ShiftedUint8WeightPerChannelFloat,
)
from torch import nn
from torch_networks import EXAMPLES, network

SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"weight_quant": Int8WeightPerChannelFloat},
    "tensor": {"weight_quant": Int8WeightPerTensorFloat},
    "uint8": {"weight_quant": ShiftedUint8WeightPerChannelFloat},
    "int4": {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4},
    "static": {"weight_quant": Int8WeightPerChannelFloat, "input_quant": Int8ActPerTensorFloat},
}
_EXPORTS: dict[str, dict[str, Any]] = {
    "script": {"dynamo": False},
    "dynamo": {"dynamo": True, "opset_version": 20, "keep_initializers_as_inputs": False},
    "dynamo, its own defaults": {},  # every weight is an input, too: findings/ has it
}


def main(networks: Path, folder: Path) -> None:
    names = {"input_names": ["x"], "output_names": ["y"]}
    for exporter, way in _EXPORTS.items():
        for setting, how in SETTINGS.items() if way else [("int4", SETTINGS["int4"])]:
            for name in ("linear",) if setting in ("tensor", "uint8") or not way else ("linear", "conv"):
                layers: dict[Any, Any] = {nn.Linear: (qnn.QuantLinear, how), nn.Conv2d: (qnn.QuantConv2d, how)}
                model = layerwise_quantize(network(name), layers)
                model(EXAMPLES[name])
                path = folder / f"{exporter} {setting} {name}.onnx"
                export_onnx_qcdq(model.eval(), EXAMPLES[name], str(path), **way, **names)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
