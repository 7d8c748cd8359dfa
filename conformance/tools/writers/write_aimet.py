"""AIMET for ONNX: weights and activations, weights alone, blocks, and blocks whose scales are quantized (LPBQ)."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from aimet_onnx import QuantizationSimModel
from aimet_onnx.quantsim import set_blockwise_quantization_for_weights, set_grouped_blockwise_quantization_for_weights
from onnx import helper

_BLOCKS: dict[str, Any] = {"op_types": ("Gemm", "MatMul", "Conv"), "bitwidth": 4, "block_size": 32}
SETTINGS = {
    "static": ("products", "gemms", "tokens", "conv"),
    "int8": ("products", "gemms", "tokens", "conv"),
    "int4": ("gemms",),
    "blocks": ("products", "gemms"),
    "lpbq": ("gemms", "conv"),
    # With prequantize_constants.
    "stored int8": ("gemms",),
    "stored blocks": ("products",),
    "stored lpbq": ("products", "gemms", "tokens"),
}
"""Setting -> networks."""


def _simulated(model: onnx.ModelProto, setting: str) -> Any:
    sim = QuantizationSimModel(model, param_type="int4" if setting == "int4" else "int8", activation_type="int8")
    if "lpbq" in setting:
        set_grouped_blockwise_quantization_for_weights(sim, decompressed_bw=8, **_BLOCKS)
    if "blocks" in setting:
        set_blockwise_quantization_for_weights(sim, symmetric=True, **_BLOCKS)
    for name in sim.activation_names if setting != "static" else ():
        sim.qc_quantize_op_dict[name].enabled = False
    (value,) = model.graph.input
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    sim.compute_encodings([{value.name: np.ones(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))}])
    return sim


def main(networks: Path, folder: Path) -> None:
    for setting, names in SETTINGS.items():
        for name in names:
            sim = _simulated(onnx.load(networks / f"{name}.onnx"), setting)
            onnx.save(sim.to_onnx_qdq(prequantize_constants="stored" in setting), folder / f"{setting} {name}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
