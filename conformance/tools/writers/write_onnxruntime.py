"""ONNX Runtime's own quantizer of weights, in QDQ form."""

import logging
import sys
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.quant_utils import QuantFormat

SETTINGS: dict[str, dict[str, Any]] = {
    "int4": {"is_symmetric": True},
    "uint4": {"is_symmetric": False},
    "channels": {"is_symmetric": True, "channel_wised_quantize": True},
}


def main(networks: Path, folder: Path) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    for setting, how in SETTINGS.items():
        for name in ("products", "tokens"):
            config = DefaultWeightOnlyQuantConfig(block_size=32, quant_format=QuantFormat.QDQ, **how)
            quantizer = MatMulNBitsQuantizer(onnx.load(networks / f"{name}.onnx"), algo_config=config)
            quantizer.process()
            onnx.save(quantizer.model.model, folder / f"{setting} {name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
