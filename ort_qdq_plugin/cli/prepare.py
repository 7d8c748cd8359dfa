"""``ort-qdq prepare``: a prepared model that can be copied to other machines."""

from __future__ import annotations

import argparse
import os

from ort_qdq_plugin.cli.cache import checked
from ort_qdq_plugin.cli.console import UsageError, progress, say
from ort_qdq_plugin.values import replace

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "prepare a model for other machines and users, in a directory to be copied or mounted with it"
EXAMPLE = "ort-qdq prepare model.onnx prepared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", help="an .onnx file")
    parser.add_argument("out", metavar="DIR", help="a directory of prepared models, which is made if it does not exist")
    parser.add_argument(
        "--share-weights", action="store_true", help="also ONNX Runtime's pre-packed weights, for processors as this one"
    )


def run(given: argparse.Namespace) -> int:
    """Prepare the model."""
    from ort_qdq_plugin.options import options_from_environment
    from ort_qdq_plugin.session import warm

    if os.path.isdir(given.model):
        raise UsageError(
            f"{given.model}: a folder: name an .onnx file in it, or use ort-qdq export for a folder of onnxruntime-genai"
        )
    checked(given.out)
    options = options_from_environment(os.environ)
    with progress(os.path.basename(given.model)) as show:
        options = replace(options, cache_dir=given.out, share_weights=given.share_weights, progress=show, prepared=None)
        report = warm(given.model, options=options, portable=True)
    if report.stock_reason is not None:
        say(f"{given.model}: left to stock ONNX Runtime: {report.stock_message}")
    else:
        say(f"{given.model}: {'was there already' if report.cache == 'used' else 'is prepared now'}: {given.out}")
    return 0
