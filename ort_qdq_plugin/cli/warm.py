"""``ort-qdq warm``: put a model into a cache before anybody loads it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ort_qdq_plugin.cli.cache import directory
from ort_qdq_plugin.cli.console import progress, say
from ort_qdq_plugin.system.environment import PREFIX
from ort_qdq_plugin.values import replace

if TYPE_CHECKING:
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.report import Report

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "put a model into a cache of prepared models, with the options that the environment gives"
EXAMPLE = "ort-qdq warm model.onnx --dir /var/cache/models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", help="an .onnx file, or a folder with a genai_config.json")
    parser.add_argument("--dir", help=f"the cache's directory (default: ${PREFIX}_CACHE_DIR)")
    parser.add_argument("--share-weights", action="store_true", help="also ONNX Runtime's pre-packed weights")


def run(given: argparse.Namespace) -> int:
    """Fill the cache."""
    from ort_qdq_plugin.options import options_from_environment
    from ort_qdq_plugin.session import warm

    cache = directory(given.dir)
    options = options_from_environment({**os.environ, f"{PREFIX}_CACHE_DIR": cache})
    is_folder = os.path.isdir(given.model)
    with progress(os.path.basename(os.path.abspath(given.model))) as show:
        options = replace(options, share_weights=given.share_weights or options.share_weights, progress=show)
        reports = _warm_folder(given.model, options) if is_folder else {given.model: warm(given.model, options=options)}
    for model, report in reports.items():
        say(f"{model}: {_outcome(report, cache)}")
    return 0


def _warm_folder(folder: str, options: Options) -> dict[str, Report]:
    from ort_qdq_plugin.genai import warm

    return {os.path.join(folder, name): report for name, report in warm(folder, options=options).items()}


def _outcome(report: Report, cache: str) -> str:
    if report.stock_reason is not None:
        return f"left to stock ONNX Runtime: {report.stock_message}"
    if not report.cache:
        return "cannot be cached, since its operators need a library of their own"
    return f"{'was there already' if report.cache == 'used' else 'is in the cache now'}: {cache}"
