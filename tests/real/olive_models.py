"""QDQ models as Olive writes them: a weight-only quantization to MatMulNBits, then its MatMulNBitsToQDQ pass.

    python olive_models.py MODEL FOLDER

writes FOLDER/<name>/ for each of the names in `VARIANTS`, and its MatMulNBits form FOLDER/<name>_q/; the file
in it has the name of MODEL.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["VARIANTS", "Variant", "main"]


class Variant(NamedTuple):
    """The settings of the two passes."""

    bits: int
    symmetric: bool
    transposed: bool  # N-major, with a Transpose behind the DequantizeLinear
    signed: bool = False
    zero_points: bool = False  # also where they are the default
    block_size: int = 32

    @property
    def type_name(self) -> str:
        return f"{'INT' if self.signed else 'UINT'}{self.bits}"


VARIANTS = {
    "uint4": Variant(4, symmetric=False, transposed=False),
    "uint4_transposed": Variant(4, symmetric=False, transposed=True),
    "uint4_symmetric_transposed": Variant(4, symmetric=True, transposed=True),
    "int4": Variant(4, symmetric=True, transposed=False, signed=True),
    "int4_transposed": Variant(4, symmetric=True, transposed=True, signed=True, zero_points=True),
    "uint4_one_block": Variant(4, symmetric=False, transposed=False, block_size=256),
    "uint4_one_block_transposed": Variant(4, symmetric=False, transposed=True, block_size=256),
    "uint8": Variant(8, symmetric=False, transposed=False),
    "uint8_transposed": Variant(8, symmetric=False, transposed=True),
    "int8": Variant(8, symmetric=True, transposed=False, signed=True),
    "int8_transposed": Variant(8, symmetric=True, transposed=True, signed=True),
}


def main(model: Path, folder: Path) -> None:
    """Write every variant of `model`."""
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.mnb_to_qdq import MatMulNBitsToQDQ
    from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization

    def made(kind: Any, **settings: Any) -> Any:
        return create_pass_from_dict(kind, settings, disable_search=True)

    for name, (bits, symmetric, transposed, signed, zero_points, block_size) in VARIANTS.items():
        quantize = made(OnnxBlockWiseRtnQuantization, bits=bits, block_size=block_size, is_symmetric=symmetric)
        quantized = quantize.run(ONNXModelHandler(str(model)), str(folder / f"{name}_q"))
        to_qdq = made(MatMulNBitsToQDQ, use_transpose_op=transposed, use_signed_int=signed, add_zero_point=zero_points)
        to_qdq.run(quantized, str(folder / name))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
