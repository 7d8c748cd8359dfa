"""The picture of a comparison: memory of each way over time, from the start of its process through load and runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from ort_qdq_plugin.cli.console import UsageError

if TYPE_CHECKING:
    from ort_qdq_plugin.cli.measure import Run

__all__ = ["check_picture", "draw"]

_SIZE, _DPI = (9, 6.5), 130  # inches
_MB = 1e6


def check_picture(path: str) -> None:
    """Whether a picture can be written to a path, before what it shows is measured.

    Raises:
        UsageError: It cannot.
    """
    folder, ending = os.path.dirname(os.path.abspath(path)), os.path.splitext(path)[1].lower().removeprefix(".")
    endings = FigureCanvasBase.get_supported_filetypes()
    if os.path.isdir(path):
        raise UsageError(f"--plot {path}: a folder, must be a file such as memory.png in it")
    if not os.path.isdir(folder):
        raise UsageError(f"--plot {path}: there is no folder {folder}")
    if ending not in endings:
        raise UsageError(f"--plot {path}: its name must end with one of .{', .'.join(sorted(endings))}")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"--plot {path}: it may not be written")


def draw(peers: Mapping[str, Sequence[Run]], path: str) -> None:
    """Draw one process of each way, that with the median time of loading; OSError if the file cannot be written."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    whole, private = figure.subplots(2, 1, sharex=True)
    for number, (name, runs) in enumerate(peers.items()):
        run = sorted(runs, key=lambda run: run.init)[len(runs) // 2]
        times = [time for time, _ in run.samples]
        anonymous = [memory.anonymous / _MB for _, memory in run.samples]
        everything = [(memory.anonymous + memory.file) / _MB for _, memory in run.samples]
        at = min(range(len(times)), key=lambda index: abs(times[index] - run.loaded), default=None)
        for axes, values in ((whole, everything), (private, anonymous)):
            axes.plot(times, values, color=f"C{number}", linewidth=1.6, label=name)
            if at is not None:
                axes.plot(run.loaded, values[at], "o", color=f"C{number}", markeredgecolor="black", markersize=7)
    whole.plot([], [], "o", color="white", markeredgecolor="black", markersize=7, label="session created")
    whole.set_title("Memory of a process that loads a model and runs it ten times")
    whole.set_ylabel("resident memory (MB)")
    private.set_ylabel("of it anonymous (MB)")
    private.set_xlabel("seconds since the start of the process")
    for axes in (whole, private):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=len(peers) + 1)
    figure.savefig(path)
