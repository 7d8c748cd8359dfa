"""Small networks exported by torch's dynamo exporter.

    python dynamo_models.py FOLDER

writes FOLDER/rows.onnx, float x [batch, 96], whose linear layers become Gemm(transB=1), and
FOLDER/sequences.onnx, float x [batch, sequence, 96], whose linear layers become MatMul and Add.
"""

import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(folder: Path) -> None:
    """Export both networks, float."""
    import torch
    from torch import nn

    torch.manual_seed(5)
    layers: list[Any] = [nn.Linear(96, 160), nn.GELU(), nn.LayerNorm(160), nn.Linear(160, 128, bias=False), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(128, 75)).eval()
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    for name, example, dynamic in (
        ("rows", torch.zeros(4, 96), {0: batch}),
        ("sequences", torch.zeros(2, 5, 96), {0: batch, 1: sequence}),
    ):
        names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamic_shapes": (dynamic,)}
        torch.onnx.export(network, (example,), folder / f"{name}.onnx", dynamo=True, verbose=False, **names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
