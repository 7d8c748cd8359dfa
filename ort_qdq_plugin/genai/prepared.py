"""What is prepared for a model's folder: entries of the cache, a report for each ONNX file, the folder that names them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from contextlib import suppress

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError, SourceChangedError, SourceUnreadableError
from ort_qdq_plugin.genai.calls import Call, config_after
from ort_qdq_plugin.genai.config import Json, ModelFile, model_files, read_config, rewritten, settings_overlay
from ort_qdq_plugin.genai.folder import ConfigFolder, new_folder
from ort_qdq_plugin.load import journey
from ort_qdq_plugin.load.journal import Journal, shown
from ort_qdq_plugin.load.request import LoadRequest, entries_of
from ort_qdq_plugin.load.through_cache import EntryFolder, NotRecordedError, entry_folder_through_cache
from ort_qdq_plugin.log import printable
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.ort.providers import check_providers
from ort_qdq_plugin.report import Report, StockReason
from ort_qdq_plugin.values import NamedTuple, replace

__all__ = ["ModelState", "Reports", "entries_for", "failed", "new_state", "without_cache"]

# Names in the folder that onnxruntime-genai reads.
_ENTRY, _ORIGINAL, _CACHE = "ort-qdq-{}", "ort-qdq-original", "ort-qdq-cache"

_TRIES = 3  # at a folder in which files are replaced meanwhile


class Reports(dict[str, Report]):
    """Reports by the names of the ONNX files in the configuration. As a text it is made to be read."""

    def __str__(self) -> str:
        return "\n".join(f"{printable(name)}: {report}" for name, report in self.items()) or "no reports"


class ModelState(NamedTuple):
    """What this package keeps for one model or configuration."""

    options: Options
    reports: Reports
    config: Json | None = None  # what is in the model's own folder; None: it cannot be read
    wanted: object = None  # what decided what was prepared
    folder: ConfigFolder | None = None  # the folder that onnxruntime-genai reads; None: the model's own
    entries: tuple[EntryFolder, ...] = ()  # the cache's entries that the folder refers to

    def is_current(self) -> bool:
        """Whether what was opened by path until now are these entries."""
        return all(folder.entry.is_current() for folder in self.entries)

    def overlay_after(self, calls: Sequence[Call]) -> str:
        """The overlay that the folder's configuration needs after these calls; "": none."""
        if self.folder is None or self.config is None:
            return ""
        overlay = settings_overlay(self.config, config_after(calls, self.config), entries_of(self.options, None))
        return json.dumps(overlay) if overlay else ""

    def holds_after(self, calls: Sequence[Call]) -> bool:
        """Whether nothing else would be prepared for a configuration after these calls."""
        return self.config is None or _wanted(self.config, calls) == self.wanted


def new_state(folder: str, calls: Sequence[Call], options: Options) -> ModelState:
    """Make the folder that onnxruntime-genai reads. If there is none, the reports have the reason."""
    try:
        config = read_config(folder)
    except (QdqPluginError, OSError):
        if options.strict:
            raise
        # onnxruntime-genai has an error for this.
        return ModelState(options, Reports())
    files: list[ModelFile] = []
    reports = Reports()
    state = ModelState(options, reports, config, _wanted(config, calls))
    try:
        files = model_files(config)
        changed = model_files(config_after(calls, config))
        for _ in range(_TRIES - 1):
            with suppress(SourceChangedError):
                return _with_folder(state, folder, changed)
        return _with_folder(state, folder, changed)
    except LeaveToStock as stock:
        log.info("%s: stock onnxruntime-genai: %s", folder, stock)
        report = Report("stock", stock.reason, stock.detail)
    except Exception as error:
        if options.strict and not isinstance(error, (QdqPluginError, OSError)):
            raise QdqPluginError(f"{type(error).__name__}: {error}") from error
        if options.strict:
            raise
        reports, report = Reports(), failed(error)
    return state._replace(reports=Reports((file.filename, reports.get(file.filename, report)) for file in files))


def without_cache(options: Options) -> Options:
    """These options, with a temporary folder in the place of the cache."""
    return replace(options, cache_dir=None, share_weights=False)


def _wanted(config: Json, calls: Sequence[Call]) -> object:
    """What decides what is prepared. Two that are equal need the same."""
    try:
        return [file.decides for file in model_files(config_after(calls, config))]
    except Exception as error:
        # Whoever prepares it says so. It is the same error for what is prepared alike.
        return f"{type(error).__name__}: {error}"


def failed(error: Exception) -> Report:
    """Warn that a model is left to stock after this error; the report of its files."""
    report = Report("stock", StockReason.ERROR, f"{type(error).__name__}: {error}")
    # Not the error itself: a handler that keeps the record would keep the files that the error leads to.
    log.warning("loading with stock onnxruntime-genai, without ort-qdq-plugin: %s", report.stock_detail)
    return report


def _with_folder(state: ModelState, folder: str, files: list[ModelFile]) -> ModelState:
    """The state with a folder whose configuration names the cache's entries; adds a report for each file."""
    options, reports = state.options, state.reports
    if any(file.has_custom_ops for file in files):
        # onnxruntime-genai looks for it below the folder that it reads, and refuses one elsewhere.
        raise LeaveToStock(StockReason.GENAI_CUSTOM_OPS)
    temporary = new_folder(None if options.spill_dir is None else os.fspath(options.spill_dir), folder)
    try:
        is_temporary = options.cache_dir is None
        without = replace(options, cache_dir=os.path.join(temporary.path, _CACHE))
        if is_temporary:
            options = without
        try:
            entries = entries_for(folder, files, options, is_temporary, reports)
        except (NotRecordedError, OSError) as problem:
            if is_temporary or isinstance(problem, SourceUnreadableError):
                raise
            log.warning("preparing without the cache: %s", problem)
            reports.clear()
            entries = entries_for(folder, files, replace(without, share_weights=False), True, reports)
        # They hold for what ONNX Runtime fuses itself, too.
        settings = entries_of(options, None)
        is_quantized = any(report.stock_reason is not StockReason.NOT_QUANTIZED for report in reports.values())
        if not entries and not (settings and is_quantized):
            raise LeaveToStock(StockReason.NOT_FUSIBLE)
        if not all(folder.entry.has_current_sources() for folder in entries.values()):
            # The first file was of one model, and the last one of another.
            raise SourceChangedError(f"{folder}: files were replaced while they were prepared")
        filenames = {file.filename: os.path.join(_ORIGINAL, file.filename) for file in files}
        links = {_ORIGINAL: os.path.abspath(folder)}
        for number, (filename, entry) in enumerate(entries.items()):
            filenames[filename] = os.path.join(_ENTRY.format(number), os.path.basename(entry.model))
            links[_ENTRY.format(number)] = os.path.dirname(entry.model)
        temporary.fill(folder, rewritten(state.config or {}, filenames, settings), links)
        return state._replace(folder=temporary, entries=tuple(entries.values()))
    except BaseException:
        temporary.close()
        raise


def entries_for(
    folder: str,
    files: list[ModelFile],
    options: Options,
    is_temporary: bool,
    reports: Reports,
    *,
    counts_as_use: bool = True,
) -> dict[str, EntryFolder]:
    """The entries of the files that can be fused, by their names; adds a report for each file."""
    entries: dict[str, EntryFolder] = {}
    for file in files:
        path = os.path.join(os.path.abspath(folder), file.filename)
        try:
            entries[file.filename] = _entry_for(path, file, options, is_temporary, counts_as_use)
            report = entries[file.filename].report
            # What is removed with the model is no cache of anybody's.
            reports[file.filename] = replace(report, cache="") if is_temporary else report
        except LeaveToStock as stock:
            reports[file.filename] = Report("stock", stock.reason, stock.detail)
        log.info("%s: %s", path, reports[file.filename].summary())
    return entries


def _entry_for(path: str, file: ModelFile, options: Options, is_temporary: bool, counts_as_use: bool) -> EntryFolder:
    check_providers(file.providers)
    request = LoadRequest(
        path,
        file.to_session_options(),
        options,
        self_contained=True,
        temporary=is_temporary,
        counts_as_use=counts_as_use,
    )
    with shown(options.progress, path) as progress:
        journal = Journal(progress)
        return entry_folder_through_cache(request, journal, functools.partial(journey.prepare, request, journal))
