"""onnx-quantize: weights alone, and with activations; its operators are functions of the model."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx_quantize import QConfig, QuantType, quantize

SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"weights_only": True, "group_size": -1},
    "tensor": {"weights_only": True},
    "int4": {"weights_only": True, "group_size": 32, "weights_dtype": QuantType.QInt4},
    "uint4": {"weights_only": True, "group_size": 32, "weights_dtype": QuantType.QUInt4, "weights_symmetric": False},
    "dynamic": {"is_static": False},
    "static": {"calibration_data": np.ones((4, 128), np.float32)},
}


def main(networks: Path, folder: Path) -> None:
    for setting, how in SETTINGS.items():
        for name in ("products", "gemms") if setting in ("int8", "uint4") else ("products",):
            onnx.save(quantize(onnx.load(networks / f"{name}.onnx"), QConfig(**how)), folder / f"{setting} {name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
