"""What the report says of models that NNCF and onnx-quantize wrote, against the graphs of ONNX Runtime's optimizer."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from real_support import needs

from conformance.claims import NETWORKS, Inputs, false_claims, network


def inputs(model: onnx.ModelProto) -> list[Any]:
    return list(iter(Inputs(model).get_next, None))


def nncf_quantized(model: onnx.ModelProto, **how: Any) -> onnx.ModelProto:
    """By NNCF's post-training quantization: activations and weights of 8 bits."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    settings = {key: getattr(getattr(nncf, kind), name) for key, (kind, name) in how.items()}
    made: onnx.ModelProto = nncf.quantize(model, nncf.Dataset(inputs(model)), subset_size=3, **settings)
    return made


def nncf_compressed(model: onnx.ModelProto, mode: str) -> onnx.ModelProto:
    """By NNCF's compression of weights."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    made: onnx.ModelProto = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[mode])
    return made


def onnx_quantized(model: onnx.ModelProto, activations: str = "QUInt8", **how: Any) -> onnx.ModelProto:
    """By onnx-quantize, whose operators are functions of the model."""
    from onnx_quantize import QConfig, QuantType, quantize

    symmetric = activations == "QInt8"
    types = {"activations_dtype": QuantType[activations], "activations_symmetric": symmetric}
    made: onnx.ModelProto = quantize(model, QConfig(calibration_data=inputs(model)[0]["x"], **types, **how))
    return made


NNCF: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "performance": nncf_quantized,
    "mixed": lambda model: nncf_quantized(model, preset=("QuantizationPreset", "MIXED")),
    "transformer": lambda model: nncf_quantized(model, model_type=("ModelType", "TRANSFORMER")),
    "int8 weights": lambda model: nncf_compressed(model, "INT8_SYM"),
    "uint8 weights": lambda model: nncf_compressed(model, "INT8_ASYM"),
}
ONNX_QUANTIZE: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "static": onnx_quantized,
    "static per channel": lambda model: onnx_quantized(model, strategy="channel"),
    "static int8": lambda model: onnx_quantized(model, "QInt8"),
    "dynamic": lambda model: onnx_quantized(model, is_static=False),
    "weights": lambda model: onnx_quantized(model, weights_only=True),
}
# Without what the tools fail at themselves: a Transpose of a constant, and a Gather.
NNCF_MODELS = [(of, how) for of in NETWORKS for how in NNCF if of != "recurrent" or how in ("performance", "mixed")]
ONNX_QUANTIZE_MODELS = [(of, how) for of in NETWORKS for how in ONNX_QUANTIZE if of != "attention"]


def check(model: onnx.ModelProto, folder: Path) -> None:
    path = folder / "model.onnx"
    onnx.save(model, path)
    assert false_claims(path, folder)[1] == []


@needs("nncf")
@pytest.mark.parametrize(("of", "how"), NNCF_MODELS)
def test_nncf(of: str, how: str, tmp_path: Path) -> None:
    check(NNCF[how](network(of)), tmp_path)


@needs("onnx_quantize")
@pytest.mark.parametrize(("of", "how"), ONNX_QUANTIZE_MODELS)
def test_onnx_quantize(of: str, how: str, tmp_path: Path) -> None:
    check(ONNX_QUANTIZE[how](network(of, opset=21)), tmp_path)
