"""``ort-qdq bench``: a model loaded and run in several ways, each in processes of its own, compared."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin.cli.console import (
    Column,
    UsageError,
    at_least,
    count,
    missing,
    progress,
    say,
    say_json,
    say_note,
    say_table,
    size,
)
from ort_qdq_plugin.cli.machine import available_memory
from ort_qdq_plugin.values import NamedTuple

if TYPE_CHECKING:
    from ort_qdq_plugin.cli.measure import Peer, Run

__all__ = ["EXAMPLE", "FIGURES", "HELP", "Figure", "add_arguments", "agreement", "compare", "run", "say_peers", "spread"]

HELP = "load and run a model in several ways, and compare time, memory and outputs"
EXAMPLE = "ort-qdq bench model.onnx --plot memory.png"

_OURS = "ours"
_PEERS = ("stock", "qoperator", "cached", "shared")
_RUNS = 5
_NEEDED_MEMORY, _NEEDED_DISK = 3, 6  # times the model: stock's peak; the model, cache entries and pre-packed weights

_MILLISECONDS = 1e3
_MB = 1e6


class Figure(NamedTuple):
    """Something that runs are compared by."""

    title: str
    of: Callable[[Run], float]
    digits: int


FIGURES = {
    "init": Figure("init s", lambda run: run.init, 2),
    "first": Figure("first run ms", lambda run: run.first * _MILLISECONDS, 1),
    "steady": Figure("steady run ms", lambda run: run.steady * _MILLISECONDS, 1),
    "cpu": Figure("CPU of init s", lambda run: run.cpu, 2),
    "faults": Figure("page faults", lambda run: run.faults, 0),
    "run cpu": Figure("CPU of a run ms", lambda run: run.run_cpu * _MILLISECONDS, 1),
    "peak": Figure("peak MB", lambda run: run.peak / _MB, 0),
    "peak anonymous": Figure(
        "anonymous MB", lambda run: max((memory.anonymous for _, memory in run.samples), default=0) / _MB, 0
    ),
    "peak file": Figure("file-backed MB", lambda run: max((memory.file for _, memory in run.samples), default=0) / _MB, 0),
    "resident": Figure("after runs MB", lambda run: sum(run.resident) / _MB, 0),
    "anonymous": Figure("anonymous MB", lambda run: run.resident.anonymous / _MB, 0),
    "file": Figure("file-backed MB", lambda run: run.resident.file / _MB, 0),
}
_TABLES = (
    ("init", "first", "steady"),
    ("cpu", "faults", "run cpu"),
    ("peak", "peak anonymous", "peak file"),
    ("resident", "anonymous", "file"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", nargs="?", help="an .onnx file; without one, a decoder as large as the machine can take")
    parser.add_argument(
        "--peers",
        default=",".join(_PEERS),
        help="what to compare with, by commas (default: all). stock: ONNX Runtime, this model. qoperator: ONNX Runtime, the "
        "fused model. cached: this package, from a cache. shared: the same with shared weights",
    )
    parser.add_argument("--runs", type=at_least(1), default=_RUNS, help=f"processes of each (default {_RUNS})")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=SHAPE", help="the shape of an input, such as ids=1x128"
    )
    parser.add_argument("--layers", type=at_least(1), help="without a model: of the decoder (default: at most 32)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw memory over time")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(given: argparse.Namespace) -> int:
    """Compare. 1 if a way failed."""
    names = [name for name in given.peers.split(",") if name]
    for name in names:
        if name not in _PEERS:
            raise UsageError(f"there is no peer {name}; peers are {', '.join(_PEERS)}")
    if given.layers is not None and given.model is not None:
        raise UsageError("--layers is for the decoder that is made without a model")
    shapes = dict(map(_shape, given.input))
    if given.plot is not None:
        if problem := missing("matplotlib", "plot"):
            raise problem
        from ort_qdq_plugin.cli.plot import check_picture

        check_picture(given.plot)
    with tempfile.TemporaryDirectory(prefix="ort-qdq-bench-") as scratch, _model(given, Path(scratch)) as model:
        peers = compare(model, [*names, _OURS], given.runs, shapes, Path(scratch))
        differences = _differences(peers)
    if given.json:
        say_json({"model": given.model, "peers": {name: _plain(peer, differences[name]) for name, peer in peers.items()}})
    else:
        say_peers(peers, differences)
    if given.plot is not None:
        from ort_qdq_plugin.cli.plot import draw

        draw({name: peer.runs for name, peer in peers.items() if peer.runs}, given.plot)
    return int(any(peer.failure for peer in peers.values()))


def compare(
    model: str, names: Sequence[str], runs: int, shapes: Mapping[str, tuple[int, ...]], scratch: Path
) -> dict[str, Peer]:
    """Load and run a model in several ways, each in this many processes. Outputs stay in the folder `scratch`.

    Shapes and errors are those of `random_inputs`.
    """
    from ort_qdq_plugin.cli.measure import Peer, in_turns, job_for

    job = job_for(model, scratch / "inputs.npz", shapes)
    peers = {}
    for name in names:
        peer = Peer(job._replace(options=None if name == "stock" else {}, outputs=str(scratch / f"{name}.npz")))
        if name == "qoperator":
            _write_fused(peer, scratch)
        elif name in ("cached", "shared"):
            _fill_cache(peer, name, scratch)
        peers[name] = peer
    with progress("measuring", of_bytes=False) as show:
        in_turns(peers, runs, show)
    return peers


def _write_fused(peer: Peer, scratch: Path) -> None:
    """Write the QOperator model that a peer loads."""
    from ort_qdq_plugin.errors import LeaveToStock
    from ort_qdq_plugin.load.export import write_model
    from ort_qdq_plugin.load.request import LoadRequest
    from ort_qdq_plugin.options import Options

    fused, data = str(scratch / "fused.onnx"), str(scratch / "fused.onnx.data")
    try:
        with progress("the model of qoperator") as show:
            write_model(LoadRequest(peer.job.model, None, Options()), fused, data, show)
    except LeaveToStock as stock:
        peer.failure = str(stock)
    else:
        peer.job = peer.job._replace(model=fused, options=None, files=(fused, data))


def _fill_cache(peer: Peer, name: str, scratch: Path) -> None:
    """Fill the cache that a peer loads from."""
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.session import warm

    folder = scratch / name
    options: dict[str, Any] = {"cache_dir": str(folder), "share_weights": name == "shared"}
    with progress(f"the cache of {name}") as show:
        report = warm(peer.job.model, options=Options(**options, progress=show))
    if not report.cache:
        peer.failure = report.stock_message or "its operators need a library of their own"
        return
    entry = (str(path) for path in folder.rglob("*") if path.is_file())
    peer.job = peer.job._replace(options=options, files=(*peer.job.files, *entry))


@contextmanager
def _model(given: argparse.Namespace, scratch: Path) -> Iterator[str]:
    """The model to measure.

    Raises:
        UsageError, ModelError, OSError: It cannot be opened.
    """
    if given.model is not None:
        from ort_qdq_plugin.load.request import LoadRequest
        from ort_qdq_plugin.load.unloadable import check_complete
        from ort_qdq_plugin.options import Options

        if os.path.isdir(given.model):
            raise UsageError(f"{given.model}: a folder: bench measures one model, so name an .onnx file in it")
        check_complete(LoadRequest(given.model, None, Options()))
        yield given.model
        return
    from ort_qdq_plugin.cli.demo_model import PHI_3_MINI, write_model

    room = min(available_memory() // _NEEDED_MEMORY, shutil.disk_usage(scratch).free // _NEEDED_DISK)
    layers = given.layers or max(1, min(PHI_3_MINI.layers, PHI_3_MINI.layers * room // PHI_3_MINI.nbytes))
    decoder = PHI_3_MINI._replace(layers=layers)
    if not given.json:
        say(f"A decoder of {count(layers, 'layer')} as in Phi-3-mini, {size(decoder.nbytes)} of uint4 weights with scales")
    with progress("writing the model") as show:
        path = write_model(scratch / "model", True, decoder, show)
    yield str(path)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, shape = text.rpartition("=")
    lengths = shape.replace(",", "x").split("x")
    if not name or not all(length.isascii() and length.isdigit() for length in lengths):
        raise UsageError(f"--input {text}: a name and a shape are wanted, such as ids=1x128")
    return name, tuple(map(int, lengths))


def _differences(peers: Mapping[str, Peer]) -> dict[str, float | None]:
    """How far outputs are from those of the first way that gave some."""
    from ort_qdq_plugin.cli.measure import difference

    reference = next((peer for peer in peers.values() if peer.runs), None)
    return {name: None if reference is None else difference(peer, reference) for name, peer in peers.items()}


def say_peers(peers: Mapping[str, Peer], differences: Mapping[str, float | None]) -> None:
    """Print what came of it: medians, and in brackets the least and the most."""
    done = {name: peer for name, peer in peers.items() if peer.runs}
    for names in _TABLES if done else ():
        figures = [FIGURES[name] for name in names]
        columns = [Column(""), *(Column(figure.title, right=True) for figure in figures)]
        rows = [[name, *(spread(figure, peer.runs) for figure in figures)] for name, peer in done.items()]
        if names is _TABLES[0]:
            columns.append(Column("outputs", right=True))
            rows = [[*row, agreement(differences[row[0]])] for row in rows]
        say_table(columns, rows)
        say()
    for name, peer in peers.items():
        if peer.failure:
            say_note(peer.failure, head=f"{name} failed: ")
        elif peer.runs[-1].report:
            say_note(peer.runs[-1].report, head=f"{name}: ")


def spread(figure: Figure, runs: Sequence[Run]) -> str:
    """The median of a figure, and in brackets the least and the most."""
    values = sorted(map(figure.of, runs))
    least, middle, most = (f"{value:.{figure.digits}f}" for value in (values[0], median(values), values[-1]))
    return middle if least == most else f"{middle} ({least}-{most})"


def agreement(difference: float | None) -> str:
    """How far outputs are from those of a reference, in words."""
    if difference is None:
        return "-"
    return "identical" if difference == 0 else f"{difference:.1e} apart"


def _plain(peer: Peer, difference: float | None) -> dict[str, object]:
    memory = ("before", "after", "resident")
    runs = [{**run._asdict(), **{name: getattr(run, name)._asdict() for name in memory}} for run in peer.runs]
    return {"failure": peer.failure, "difference": difference, "runs": runs}
