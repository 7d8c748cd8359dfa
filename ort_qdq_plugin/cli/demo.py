"""``ort-qdq demo``: the comparison with stock ONNX Runtime on two small models that are made for the occasion."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ort_qdq_plugin.cli.bench import compare, say_peers
from ort_qdq_plugin.cli.console import at_least, say, size

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "compare with stock ONNX Runtime on small models that are made for the occasion"
EXAMPLE = "ort-qdq demo"

_RUNS = 3
# At accuracy level 4 activations are rounded to 8 bits, where an unfused product stays in float.
_ROUNDING = 0.05
_ORDERS = (
    (True, "K-major: DequantizeLinear(axis=0) -> MatMul, as most quantizers write it"),
    (False, "N-major: DequantizeLinear(axis=1) -> Transpose -> MatMul, which stock ONNX Runtime leaves unfused"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("--runs", type=at_least(1), default=_RUNS, help=f"processes each way (default {_RUNS})")


def run(given: argparse.Namespace) -> int:
    """Compare, in the two orders in which weights are stored. 1 if outputs are not as they should be."""
    from ort_qdq_plugin.cli.demo_model import SMALL, write_model
    from ort_qdq_plugin.cli.measure import difference

    say(f"Decoders of {SMALL.layers} layers, {size(SMALL.nbytes)} of uint4 weights with scales.")
    say("Models this small show that it works; fixed costs weigh less on larger ones.")
    agreed = True
    for k_major, title in _ORDERS:
        say("", title)
        with tempfile.TemporaryDirectory(prefix="ort-qdq-demo-") as scratch:
            model = write_model(Path(scratch) / "model", k_major)
            peers = compare(str(model), ("stock", "ours"), given.runs, {}, Path(scratch))
            apart = difference(peers["ours"], peers["stock"])
        say_peers(peers, {"stock": 0.0, "ours": apart})
        fused = any(run.fused for run in peers["ours"].runs)
        agreed &= fused and apart is not None and apart <= (0.0 if k_major else _ROUNDING)
    say("", "Both ways agree." if agreed else "The ways DO NOT AGREE as they should: this is a bug, please report it.")
    return int(not agreed)
