"""Loads of a model whose weight is stored in float, and quantized to 4 bits in blocks by nodes of the model.

    python -m benchmarks.quantized_at_load [--runs 5] [--gigabytes 1] [--dir FOLDER] [--against PATH] [--check]

Stock ONNX Runtime carries these nodes out when it loads the model, with the whole weight in memory. K-major, it fuses the
rest then; N-major, it dequantizes the weight on every run.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.results import Results, command
from benchmarks.ways import jobs, measure, peers
from ort_qdq_plugin.cli.measure import Peer

__all__ = ["main", "write_float_weight"]

_LAYOUTS = {"K-major": False, "N-major": True}
_BLOCK, _ROWS = 32, 512  # rows that are written at once


def write_float_weight(path: Path, size: int, *, n_major: bool) -> None:
    """A model with one product by a float weight [size, size], in a file beside it, behind QuantizeLinear to int4."""
    rng, data = np.random.default_rng(size), path.with_suffix(".data")
    with data.open("wb") as file:
        for first in range(0, size, _ROWS):
            rows = rng.standard_normal((min(_ROWS, size - first), size), dtype=np.float32)
            rows *= np.float32(0.05)
            rows.tofile(file)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", data.name), ("length", str(4 * size * size))):
        weight.external_data.add(key=key, value=value)
    shape = [size, size // _BLOCK] if n_major else [size // _BLOCK, size]
    scales = rng.uniform(0.01, 0.03, shape).astype(np.float32)
    made = [
        weight,
        helper.make_tensor("s", TensorProto.FLOAT, shape, scales.tobytes(), raw=True),
        helper.make_tensor("z", TensorProto.INT4, shape, bytes(scales.size // 2), raw=True),
    ]
    blocks: dict[str, Any] = {"axis": int(n_major), "block_size": _BLOCK}
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], **blocks),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], **blocks),
        helper.make_node("Gemm", ["x", "d"], ["y"], transB=int(n_major)),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", size]) for name in "xy")
    graph = helper.make_graph(nodes, "quantized_at_load", [x], [y], made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if a target is missed and `--check` is given."""
    parser, results = command("quantized_at_load", __doc__, 5), Results("Float weights that are quantized at load")
    parser.add_argument("--gigabytes", type=float, default=1, help="of the weight (default 1)")
    parser.add_argument("--dir", default=None, help="folder for the models, which are removed afterwards")
    args = parser.parse_args(argv)
    size = int((args.gigabytes * 2**30 / 4) ** 0.5) // 64 * 64
    with tempfile.TemporaryDirectory(prefix="ort-qdq-float-", dir=args.dir) as folder:
        contenders: dict[str, Peer] = {}
        for name, n_major in _LAYOUTS.items():
            model = Path(folder, f"{name}.onnx")
            write_float_weight(model, size, n_major=n_major)
            made = jobs(folder, model, files=(str(model), str(model.with_suffix(".data"))))
            contenders |= peers(("stock-qdq", "ours-qdq"), made, folder, args.against, f"{name}: ")
        measure(contenders, args.runs)
    shown = ["init", "cpu", "load peak", "steady"]
    results.table(contenders, shown, shown, ["stock-qdq"])
    for name in _LAYOUTS:
        results.target(contenders, "load peak", "ours-qdq", 0.5, by="stock-qdq", model=f"{name}: ")
    return results.finish(args)


if __name__ == "__main__":
    sys.exit(main())
