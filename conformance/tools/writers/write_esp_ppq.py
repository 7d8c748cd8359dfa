"""esp-ppq: models for ONNX Runtime, with weights and activations of 8 bits."""

import sys
from pathlib import Path
from typing import Any

import torch
from esp_ppq import QuantizationSettingFactory, TargetPlatform
from esp_ppq.api import export_ppq_graph, quantize_onnx_model

SETTINGS = {
    "espdl": TargetPlatform.ESPDL_INT8,
    "tensorrt": TargetPlatform.TRT_INT8,
    "openvino": TargetPlatform.OPENVINO_INT8,
}
_SHAPES = {"products": [4, 128], "gemms": [4, 128], "conv": [1, 3, 8, 8]}
_STEPS = 8  # the fewest that it calibrates with


def main(networks: Path, folder: Path) -> None:
    for setting, platform in SETTINGS.items():
        for name, shape in _SHAPES.items():
            how: dict[str, Any] = {
                "calib_dataloader": [torch.ones(shape)] * _STEPS,
                "calib_steps": _STEPS,
                "input_shape": shape,
                "collate_fn": lambda batch: batch,
                "setting": QuantizationSettingFactory.default_setting(),
                "device": "cpu",
            }
            made = quantize_onnx_model(str(networks / f"{name}.onnx"), platform=platform, **how)
            export_ppq_graph(made, TargetPlatform.ONNXRUNTIME, str(folder / f"{setting} {name}.onnx"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
