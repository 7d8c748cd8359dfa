"""onnxslim and onnxsim, over models that the other tools wrote: NETWORKS is their folder."""

import sys
from pathlib import Path

import onnx
import onnxsim
import onnxslim

_MODELS = (
    "aimet/int8 gemms", "aimet/stored lpbq products", "brevitas/script int4 linear", "nncf/int4_sym products",
    "onnx_quantize/uint4 products", "onnxruntime/uint4 tokens", "torch/dynamo linear", "torchao/int4 blocks linear",
)  # fmt: skip


def main(models: Path, folder: Path) -> None:
    for name in _MODELS:
        path, made = models / f"{name}.onnx", name.replace("/", " ")
        onnx.save(onnxslim.slim(onnx.load(path)), folder / f"onnxslim {made}.onnx")
        onnx.save(onnxsim.simplify(onnx.load(path))[0], folder / f"onnxsim {made}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
