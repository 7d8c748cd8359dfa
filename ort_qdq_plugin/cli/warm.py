"""``ort-qdq warm``: put a model into a cache before anybody loads it."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from ort_qdq_plugin.cli.cache import directory
from ort_qdq_plugin.cli.console import progress, say
from ort_qdq_plugin.environment import PREFIX

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "put a model into a cache of prepared models, with the options that the environment gives"
EXAMPLE = "ort-qdq warm model.onnx --dir /var/cache/models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", help="an .onnx file")
    parser.add_argument("--dir", help=f"the cache's directory (default: ${PREFIX}_CACHE_DIR)")
    parser.add_argument("--share-weights", action="store_true", help="also ONNX Runtime's pre-packed weights")


def run(given: argparse.Namespace) -> int:
    """Fill the cache."""
    from ort_qdq_plugin.activation import options_from_environment
    from ort_qdq_plugin.session import inspect, warm

    folder = directory(given.dir)
    options = options_from_environment({**os.environ, f"{PREFIX}_CACHE_DIR": folder})
    # What warm() takes for a model that is stock's to complain about is an error here.
    inspect(given.model, options=options)
    with progress("packing") as show:
        shared = given.share_weights or options.share_weights
        report = warm(given.model, options=replace(options, share_weights=shared, progress=show))
    if report.passed_through is not None:
        say(f"{given.model}: left to stock ONNX Runtime, which the cache remembers: {report.passed_through}")
    elif not report.cache:
        say(f"{given.model}: cannot be cached, since its operators need a library of their own")
    else:
        say(f"{given.model}: {'was there already' if report.cache == 'used' else 'is in the cache now'}: {folder}")
    return 0
