"""ModelOpt for ONNX: 4 bits by rounding or AWQ, and 8 bits with activations."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize
from onnx import helper

_INT4: dict[str, Any] = {"quantize_mode": "int4", "block_size": 32}
_INT8: dict[str, Any] = {"quantize_mode": "int8", "calibration_method": "max"}
# AWQ of transposed weights, and of float weights in front of QuantizeLinear ("rtn"), do not run: findings/ has why.
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "rtn": ({**_INT4, "calibration_method": "rtn_dq"}, ("products", "gemms", "tokens")),
    "awq": ({**_INT4, "calibration_method": "awq_lite"}, ("products", "tokens")),
    "awq clip": ({**_INT4, "calibration_method": "awq_clip"}, ("products",)),
    "awq uint4": ({**_INT4, "calibration_method": "awq_lite", "use_zero_point": True}, ("products",)),
    "int8": (_INT8, ("products", "gemms", "tokens", "conv")),
    "stored int8": ({**_INT8, "dq_only": True}, ("gemms", "conv")),
}
"""Setting -> how, and networks."""


def main(networks: Path, folder: Path) -> None:
    for setting, (how, names) in SETTINGS.items():
        for name in names:
            path = networks / f"{name}.onnx"
            (value,) = onnx.load(path).graph.input
            kind = value.type.tensor_type
            shape = [dim.dim_value for dim in kind.shape.dim]
            example = {value.name: np.ones(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))}
            where = {"output_path": str(folder / f"{setting} {name}.onnx"), "log_level": "ERROR"}
            quantize(
                str(path), calibration_data=example, calibration_eps=["cpu"], high_precision_dtype="fp32", **where, **how
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
