"""``ort-qdq inspect``: what this package would do with each quantized weight of a model, and what the others cost."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ort_qdq_plugin.cli.console import Column, count, say, say_json, say_note, say_table, size
from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.report import Report, StockReason
from ort_qdq_plugin.report.weights import FusedWeight, UnfusedWeight
from ort_qdq_plugin.values import NamedTuple, replace

if TYPE_CHECKING:
    from ort_qdq_plugin.genai.config import ModelFile

__all__ = ["EXAMPLE", "HELP", "add_arguments", "files_in", "groups", "run"]

HELP = "show what can be done for each quantized weight of a model, and what the others cost"
EXAMPLE = "ort-qdq inspect model.onnx"

# Words of a form that say more than that a DequantizeLinear reads what is stored.
_WAYS = ("behind", "written out")

_COLUMNS = (
    Column("#", right=True),
    Column("kind"),
    Column("K x N", right=True),
    Column("bits", right=True),
    Column("block", right=True),
    Column("layout"),
    Column("stored", right=True),
    Column("outcome"),
    Column("per run", right=True),
)


class Group(NamedTuple):
    """Weights that are alike: a row of the table."""

    kind: str  # the operator type of what reads them, "" where they stay
    shape: tuple[int, ...]  # [K, N], or as they are stored where they stay
    bits: int  # of an element
    block: int  # elements that share a scale; 0 if there are no blocks
    layout: str  # how they are stored, "" where that cannot be said
    outcome: str  # "packed", "in place", or the reason why they stay
    fused: bool
    form: str = ""  # the weight in words, but for what the other columns say of a fused one
    hint: str = ""  # what would help
    once: bool = False  # whether they are dequantized once, when the model is loaded
    weights: int = 0  # how many they are: what several DequantizeLinear nodes read is one
    names: tuple[str, ...] = ()  # of these nodes
    stored_bytes: int = 0  # of all of them, each counted once
    bytes_per_run: int = 0  # that are written dequantizing all of them, on each run
    bytes_added: int = 0  # of their values, if these are computed once
    bytes_folded: int = 0  # the same, if ONNX Runtime computes them

    @property
    def has_note(self) -> bool:
        """Whether there is more to say of it than fits into a row."""
        return not self.fused or bool(self.form)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("model", help="an .onnx file, or a folder with a genai_config.json")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--no-check", action="store_true", help="do not ask ONNX Runtime whether it takes the model, which nobody trusts"
    )
    parser.add_argument(
        "--unfused", action="store_true", help="only what stays unfused, by name; exit code 1 if that costs anything"
    )


def run(given: argparse.Namespace) -> int:
    """Inspect the model, or all models of a folder."""
    from ort_qdq_plugin.session import inspect

    is_folder, check = os.path.isdir(given.model), not given.no_check
    if is_folder:
        files = {os.path.join(given.model, file.filename): file for file in files_in(given.model)}
        reports = {path: _as_genai_loads_it(inspect(path, check=check), path, file) for path, file in files.items()}
    else:
        reports = {given.model: inspect(given.model, check=check)}
    if given.json:
        plain = [{"model": path, **report.to_dict()} for path, report in reports.items()]
        say_json(plain if is_folder else plain[0])
    else:
        for number, (path, report) in enumerate(reports.items()):
            if is_folder:
                say(*[""] * bool(number), f"{path}:")
            _say_groups(groups(() if given.unfused else report.fused, report.unfused), given.unfused)
            _say_totals(report)
            _say_others(report)
            say(f"Verdict: {_verdict(report)}")
    costs = given.unfused and any(entry.bytes_per_run for report in reports.values() for entry in report.unfused)
    return int(costs or any(report.stock_reason is StockReason.REFUSED for report in reports.values()))


def _as_genai_loads_it(report: Report, path: str, file: ModelFile) -> Report:
    """What becomes of a model where onnxruntime-genai loads it, with its own session options and execution providers."""
    from ort_qdq_plugin.load.request import LoadRequest
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.ort.providers import check_providers

    if report.unchanged is not None:
        # It opens models itself of which nothing is fused.
        return replace(report, stock_reason=report.unchanged, unchanged=None, packed_bytes=0, borrowed_bytes=0)
    if report.stock_reason is not None:
        return report
    request = LoadRequest(path, file.to_session_options(), Options())
    try:
        check_providers(file.providers)
    except LeaveToStock as stock:
        return Report("inspect", stock.reason, stock.detail)
    return report if request.may_fuse else Report("inspect", StockReason.FUSION_DISABLED, request.fusion_disabled_by)


def files_in(folder: str) -> list[ModelFile]:
    """The models that a folder's genai_config.json names.

    Raises:
        ModelError, OSError: It is no such folder, or its configuration names none.
    """
    from ort_qdq_plugin.genai.config import named_files

    return named_files(folder)


def groups(fused: Iterable[FusedWeight], unfused: Iterable[UnfusedWeight]) -> list[Group]:
    """Rows of the table: what costs most on each run first, then what is largest."""
    found: dict[Group, list[FusedWeight | UnfusedWeight]] = {}
    for entry in fused:
        outcome = "packed" if entry.packed_bytes else "in place"
        outcome += f", {entry.bits} bits" * (entry.bits != entry.stored_bits)
        form = entry.form if any(way in entry.form for way in _WAYS) else ""
        group = Group(entry.kind, (entry.k, entry.n), entry.stored_bits, entry.block_size, entry.layout, outcome, True, form)
        found.setdefault(group, []).append(entry)
    for left in unfused:
        once = left.bytes_added > 0
        how = (str(left.reason), False, left.form, "" if once else left.hint, once)
        group = Group("", left.shape, left.bits, left.block_size, "", *how)
        found.setdefault(group, []).append(left)
    rows = [_counted(group, members) for group, members in found.items()]
    return sorted(rows, key=lambda group: (-group.bytes_per_run, -group.stored_bytes))


def _counted(group: Group, members: Iterable[FusedWeight | UnfusedWeight]) -> Group:
    """A row with its sums: of weights, or, where each node costs, of nodes."""
    weights, nodes = {entry.weight: entry for entry in members}, {entry.dequantize: entry for entry in members}
    left = [entry for entry in nodes.values() if isinstance(entry, UnfusedWeight)]
    added = {entry.weight: entry.bytes_added for entry in left}
    return group._replace(
        weights=len(weights),
        names=tuple(nodes),
        stored_bytes=sum(entry.stored_bytes for entry in weights.values()),
        bytes_per_run=sum(entry.bytes_per_run for entry in left),
        bytes_added=sum(added.values()),
        bytes_folded=sum(entry.bytes_folded for entry in left),
    )


def _say_groups(shown: Sequence[Group], by_name: bool) -> None:
    noted = [group for group in shown if group.has_note]
    if shown:
        rows = [_cells(group, _noted(group, noted)) for group in shown]
        say_table(_COLUMNS, rows, marked=[index for index, group in enumerate(shown) if not group.fused])
        say()
    for number, group in enumerate(noted, 1):
        say_note(group.form if group.fused else group.outcome, head=f"({number}) ")
        if group.fused:
            continue
        values = math.prod(group.shape)
        if group.bytes_folded:
            say_note(f"ONNX Runtime dequantizes it once, at load, to {size(group.bytes_folded)} in all.")
        elif group.once:
            say_note(f"Loading dequantizes {values:,} values of each, to {size(group.bytes_added)} in all.")
        elif group.bytes_per_run:
            total = size(group.bytes_per_run)
            say_note(f"Each run dequantizes {values:,} values of each, for every reader, to {total} in all.")
        if group.form:
            say_note(f"It is {group.form}.")
        if group.hint:
            say_note(f"What would help: {group.hint}")
        for name in group.names if by_name else ():
            say(f"    {name}")
    if noted:
        say()


def _noted(group: Group, noted: Sequence[Group]) -> str:
    """What the table says of what becomes of weights, with the number of the note on them, if there is one."""
    outcome = group.outcome if group.fused else "once" if group.once else "unfused"
    return f"{outcome} ({noted.index(group) + 1})" if group in noted else outcome


def _cells(group: Group, outcome: str) -> list[str]:
    return [
        str(group.weights),
        group.kind or "-",
        " x ".join(map(str, group.shape)) or "scalar",
        str(group.bits or "-"),
        str(group.block or "-"),
        group.layout or "-",
        size(group.stored_bytes),
        outcome,
        size(group.bytes_per_run) if group.bytes_per_run else "-",
    ]


def _say_totals(report: Report) -> None:
    weights = {entry.weight for entry in report.fused} | {entry.weight for entry in report.unfused}
    if weights:
        say(f"{count(len(weights), 'quantized weight')}, {size(report.stored_bytes)} with scales and zero points.")
        if report.unchanged is None:
            say(f"{size(report.packed_bytes)} are packed for a session, {size(report.borrowed_bytes)} are used in place.")


def _say_others(report: Report) -> None:
    """In which other ways the model is quantized, unless the verdict says so."""
    if report.also not in ("", report.stock_detail):
        say(f"It is also {report.also}.")


def _verdict(report: Report) -> str:
    """What it comes to, in one line."""
    left = {entry.weight for entry in report.unfused}
    fused = {entry.weight for entry in report.fused} - left
    once = sum(1 for entry in report.unfused if entry.bytes_added)
    nbytes = sum(entry.bytes_per_run for entry in report.unfused)
    per_run = f"; {size(nbytes)} of float are written on each run" if nbytes else ""
    if report.stock_reason is StockReason.REFUSED:
        return f"no session takes it. {report.stock_message}"
    if report.unchanged is not None:
        tensors = size(report.packed_bytes + report.borrowed_bytes)
        why = report.unchanged.message(report.stock_detail)
        return f"handed over unchanged, {tensors} of tensors without parsing or copying them{per_run}. {why}"
    if report.stock_reason is not None:
        return f"left to stock ONNX Runtime as it is{per_run}. {report.stock_message}"
    if not fused and not left:
        return "nothing is left to fuse; its weights are handed over without a copy"
    if not left:
        return f"all fused, {count(len(fused), 'quantized weight')}"
    also = f", {once} dequantized once" if once else ""
    return f"{len(fused)} of {count(len(fused) + len(left), 'quantized weight')} fused{also}{per_run}"
