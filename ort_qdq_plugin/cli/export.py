"""``ort-qdq export``: write the fused model, for stock ONNX Runtime anywhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ort_qdq_plugin.cli.console import UsageError, progress, say, size

if TYPE_CHECKING:
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.report import Report

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "write the fused model as an ordinary QOperator model, which stock ONNX Runtime loads anywhere"
EXAMPLE = "ort-qdq export model.onnx fused.onnx --external-data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", help="an .onnx file, or a folder with a genai_config.json")
    parser.add_argument("out", help="the new .onnx file, or the new folder")
    parser.add_argument(
        "--external-data", action="store_true", help="weights in a file of their own, OUT.data; in folders they always are"
    )
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument(
        "--accuracy-level",
        type=int,
        choices=range(5),
        metavar="LEVEL",
        help="of the fused nodes, 0 to 4 (default 4, or what genai_config.json says)",
    )
    parser.add_argument(
        "--dequantize-once",
        action="store_true",
        help="write weights that no fused operator takes dequantized, not as integers",
    )


def run(given: argparse.Namespace) -> int:
    """Export the model."""
    from ort_qdq_plugin.options import Options

    options = Options(accuracy_level=given.accuracy_level, dequantize_once="always" if given.dequantize_once else "auto")
    export = _export_folder if os.path.isdir(given.model) else _export_file
    try:
        export(given, options)
    except FileExistsError as error:
        is_no_folder = os.path.isdir(given.model) and not os.path.isdir(given.out)
        hint = "name another folder" if given.force or is_no_folder else "say --force"
        raise UsageError(f"{error.filename} is there already: {hint}") from error
    return 0


def _export_file(given: argparse.Namespace, options: Options) -> None:
    from ort_qdq_plugin.load.export import export

    with progress(os.path.basename(os.path.abspath(given.model))) as show:
        report = export(
            given.model, given.out, external_data=given.external_data, force=given.force, progress=show, options=options
        )
    written = [given.out, *([f"{given.out}.data"] if given.external_data else [])]
    say(f"{' and '.join(written)}: {_outcome(report)}, {size(_length(written))}")


def _export_folder(given: argparse.Namespace, options: Options) -> None:
    from ort_qdq_plugin.genai.export_folder import export

    with progress(os.path.basename(os.path.abspath(given.model))) as show:
        reports: Mapping[str, Report] = export(given.model, given.out, force=given.force, progress=show, options=options)
    for name, report in reports.items():
        say(f"{os.path.join(given.out, name)}: {_outcome(report)}")
    written = [os.path.join(at, name) for at, _, names in os.walk(given.out) for name in names]
    say(f"{given.out}: {size(_length(written))}")


def _outcome(report: Report) -> str:
    if report.stock_reason is not None:
        return f"unchanged: {report.stock_message}"
    return f"{len(report.fused)} fused, {len(report.unfused)} left"


def _length(paths: list[str]) -> int:
    return sum(os.stat(path).st_size for path in paths)
