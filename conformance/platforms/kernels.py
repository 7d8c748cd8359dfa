"""How exact stock ONNX Runtime's kernels for products are on this processor, without this package.

    python -m conformance.platforms.kernels [--only GLOB] [--markdown FILE]

A row is a product, of 1 to 17 rows with N=48 columns. Its figures are the largest errors, max|a-b|/max|a|, against the same
product in double precision, for each K. Nothing is judged: the exit code is 0.
"""

import platform
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from conformance.checks import parser, run
from conformance.drawing.elements import MS, Array
from conformance.sessions import CPU, quiet_options

_N, _BLOCK = 48, 32
_DEPTHS = (64, 576, 2048)
_ROW_COUNTS = (1, 3, 17)


class _Kernel(NamedTuple):
    """A MatMulNBits, or where `bits` is 0 a MatMul of the dequantized weight."""

    kind: str  # of activations and scales
    bits: int
    level: int = 0
    zero_points: bool = False  # given, though they are those that it takes by itself

    @property
    def name(self) -> str:
        if not self.bits:
            return f"{self.kind}, dense"
        return f"{self.kind}, {self.bits} bits, level {self.level}{', zero points' if self.zero_points else ''}"


_KERNELS = [_Kernel(kind, 0) for kind in ("float32", "float16")] + [
    _Kernel(*facts) for facts in product(("float32", "float16"), (2, 4, 8), (0, 4), (False, True))
]


def _error(kernel: _Kernel, k: int) -> float:
    rng = np.random.default_rng(k)
    middle = 1 << (kernel.bits or 8) - 1
    integers = rng.integers(0, 2 * middle, (_N, k), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.02, (_N, k // _BLOCK)).astype(kernel.kind)
    weight = (integers.astype(np.float64) - middle) * np.repeat(scales.astype(np.float64), _BLOCK, axis=1)  # [N, K]
    inputs = {"w": weight.T.astype(kernel.kind)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    if kernel.bits:
        per_byte = 8 // kernel.bits
        in_bytes = [integers[:, at::per_byte] << kernel.bits * at for at in range(per_byte)]
        inputs = {"w": np.bitwise_or.reduce(in_bytes).reshape(_N, k // _BLOCK, -1), "s": scales.reshape(-1)}
        if kernel.zero_points:
            middles = sum(middle << kernel.bits * at for at in range(per_byte))
            inputs["z"] = np.full(_N * -(-k // _BLOCK // per_byte), middles, np.uint8)
        given: dict[str, Any] = {"K": k, "N": _N, "bits": kernel.bits, "block_size": _BLOCK, "accuracy_level": kernel.level}
        node = helper.make_node("MatMulNBits", ["x", *inputs], ["y"], domain=MS, **given)
    else:
        weight = inputs["w"].T.astype(np.float64)
    session = _session(node, inputs, kernel.kind, k)
    found, wanted = [], []
    for rows in _ROW_COUNTS:
        x = rng.standard_normal((rows, k)).astype(kernel.kind)
        found.append(session.run(None, {"x": x})[0].astype(np.float64))
        wanted.append(x.astype(np.float64) @ weight.T)
    a, b = np.concatenate(wanted), np.concatenate(found)
    return float(np.abs(a - b).max() / np.abs(a).max())


def _session(node: onnx.NodeProto, inputs: dict[str, Array], kind: str, k: int) -> ort.InferenceSession:
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[kind]
    x, y = (helper.make_tensor_value_info(name, element, ["m", size]) for name, size in (("x", k), ("y", _N)))
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in inputs.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    model = helper.make_model(helper.make_graph([node], "product", [x], [y], tensors), opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), quiet_options(), providers=CPU)


def _row(kernel: _Kernel) -> tuple[Sequence[str], Sequence[str]]:
    return [kernel.name, *(f"{_error(kernel, k):.1e}" for k in _DEPTHS)], []


def _main() -> int:
    args = parser(__doc__).parse_args()
    title = f"{platform.platform()}, ONNX Runtime {ort.__version__}"
    return run({kernel.name: kernel for kernel in _KERNELS}, _row, ["product", *(f"K={k}" for k in _DEPTHS)], args, title)


if __name__ == "__main__":
    sys.exit(_main())
