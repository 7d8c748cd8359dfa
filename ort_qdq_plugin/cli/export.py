"""``ort-qdq export``: write the fused model, for stock ONNX Runtime anywhere."""

from __future__ import annotations

import argparse
import os

from ort_qdq_plugin.cli.console import UsageError, progress, say, size

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "write the fused model as an ordinary QOperator model, which stock ONNX Runtime loads anywhere"
EXAMPLE = "ort-qdq export model.onnx fused.onnx --external-data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", help="an .onnx file")
    parser.add_argument("out", help="the new .onnx file")
    parser.add_argument("--external-data", action="store_true", help="weights in a file of their own, OUT.data")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--accuracy-level", type=int, help="of the fused nodes, 0 to 4 (default 4)")


def run(given: argparse.Namespace) -> int:
    """Export the model."""
    from ort_qdq_plugin.export import export
    from ort_qdq_plugin.options import Options

    try:
        options = Options(accuracy_level=given.accuracy_level)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        with progress("exporting") as show:
            report = export(
                given.model,
                given.out,
                external_data=given.external_data,
                force=given.force,
                progress=show,
                options=options,
            )
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is there already: say --force") from error
    written = [given.out, *([f"{given.out}.data"] if given.external_data else [])]
    nbytes = sum(os.stat(path).st_size for path in written)
    say(f"{' and '.join(written)}: {len(report.fused)} fused, {len(report.unfused)} left, {size(nbytes)}")
    return 0
