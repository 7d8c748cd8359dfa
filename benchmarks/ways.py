"""Ways of loading a model that tables compare, and other checkouts of this package among them."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ort_qdq_plugin
from ort_qdq_plugin.cli.measure import Job, Peer, in_turns, job_for

__all__ = ["HERE", "WAYS", "Checkout", "commit_of", "jobs", "measure", "peers", "title"]


class Way(NamedTuple):
    """How a model is loaded."""

    title: str  # in a table
    options: Mapping[str, Any] | None = None  # of this package; None where it has no part
    fused: bool = False  # whether it loads the QOperator model, not the QDQ model
    cached: bool = False  # whether from a cache
    entries: Mapping[str, str] = {}  # configuration entries of the session's options
    engine: str = ""  # the program in this folder that loads it, where that is not ONNX Runtime


# Strict: a fallback to stock ONNX Runtime must not pass for this package's figure.
_OURS, _CALLS = {"strict": True}, "with_other_calls.py"
WAYS = {
    "stock-qop": Way("stock, QOperator", fused=True),
    "stock-qdq": Way("stock, QDQ"),
    "stock-dense": Way("stock, QDQ, disable_quant_qdq", entries={"session.disable_quant_qdq": "1"}),
    "openvino": Way("OpenVINO, QDQ", engine="with_openvino.py"),
    "stock-any": Way("stock"),
    "ours-any": Way("**this package**", _OURS),
    "ours-qdq": Way("**this package**, QDQ", _OURS),
    "ours-qop": Way("**this package**, QOperator", _OURS, fused=True),
    "cached": Way("**this package**, from the cache", _OURS, cached=True),
    "shared": Way("**this package**, from the cache, shared weights", {**_OURS, "share_weights": True}, cached=True),
    "by path": Way("external data on disk, by path", {"way": "by path"}, fused=True, engine=_CALLS),
    "added": Way("`add_external_initializers`", {"way": "added"}, fused=True, engine=_CALLS),
    "copied": Way("files in memory, copied", {"way": "copied"}, fused=True, engine=_CALLS),
    "borrowed": Way("files in memory, borrowed", {"way": "borrowed"}, fused=True, engine=_CALLS),
    "trimmed": Way("files in memory, borrowed, pages dropped", {"way": "trimmed"}, fused=True, engine=_CALLS),
}


class Checkout(NamedTuple):
    """A folder with this package, and what it is called in a table: behind an @, its name and its commit."""

    label: str
    folder: Path

    @staticmethod
    def of(path: str) -> Checkout:
        """A checkout by its path; ArgumentTypeError if there is none."""
        folder = Path(path).resolve()
        if not (folder / ort_qdq_plugin.__name__ / "__init__.py").is_file():
            raise ArgumentTypeError(f"{path} has no package {ort_qdq_plugin.__name__}")
        return Checkout("-".join(filter(None, [f"@{folder.name}", commit_of(folder)])), folder)


HERE = Checkout("", Path(ort_qdq_plugin.__file__).resolve().parents[1])
"""The checkout that this module is of."""


def commit_of(folder: Path) -> str:
    """A checkout's commit; "" where that is not known."""
    if not (folder / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def jobs(
    folder: str, *paths: Path, level: int | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None, **fields: Any
) -> list[Job]:
    """Loading each of these models and running it, at an accuracy level; the inputs go to a folder."""
    entries = {} if level is None else {"session.qdq_matmulnbits_accuracy_level": str(level)}
    made = [job_for(str(path), Path(folder, f"{path.stem}.npz"), shapes or {}) for path in paths]
    return [job._replace(entries=entries, **fields) for job in made]


def peers(
    names: Iterable[str], models: Sequence[Job], scratch: str | Path, against: Sequence[Checkout], model: str = ""
) -> dict[str, Peer]:
    """The contenders of the ways with these names, and those of this package by each other checkout too.

    `models` are the job of loading the QDQ model, and last that of the QOperator model; `scratch` is for outputs and caches;
    `model` stands before the names, where several models are compared.
    """
    made = {}
    for name in names:
        way, job = WAYS[name], models[-1 if WAYS[name].fused else 0]
        for checkout in (HERE,) if way.options is None or way.engine else (HERE, *against):
            key = f"{model}{name}{checkout.label}"
            cache = {"cache_dir": str(Path(scratch, f"cache{checkout.label}"))} if way.cached else {}
            job = job._replace(
                options=None if way.options is None else {**way.options, **cache},
                entries={**job.entries, **way.entries},
                engine=str(Path(__file__).with_name(way.engine)) if way.engine else job.engine,
                outputs=str(Path(scratch, f"{key}.npz")) if job.inputs else "",
                package=str(checkout.folder),
                # Older helper processes import what lies in the current folder.
                folder=str(checkout.folder),
            )
            made[key] = Peer(job)
    return made


def title(key: str) -> str:
    """What a contender of `peers` is called in a table."""
    model, _, name = key.rpartition(": ")
    name, _, checkout = name.partition("@")
    return f"{model and f'{model}, '}{WAYS[name].title}{checkout and f' @{checkout}'}"


def measure(contenders: Mapping[str, Peer], runs: int) -> None:
    # What is installed has its bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(", ".join(contenders), file=sys.stderr)
    in_turns(contenders, runs, lambda done, total: print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True))
    print(file=sys.stderr)
