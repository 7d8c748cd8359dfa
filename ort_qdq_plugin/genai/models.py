"""Models of onnxruntime-genai, created from folders with fused models.

onnxruntime-genai creates its sessions in C++, so it gets another folder to read: see folder.py. That folder lives as long as
the model, since tokenizers and processors are read from it later.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError, SourceChangedError, SourceUnreadableError
from ort_qdq_plugin.genai.calls import (
    Call,
    config_after,
    create_stock_model,
    genai_module,
    new_config,
    record_of,
    replace_methods,
)
from ort_qdq_plugin.genai.config import Json, ModelFile, model_files, read_config, rewritten
from ort_qdq_plugin.genai.folder import ConfigFolder, new_folder
from ort_qdq_plugin.load import journey
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.request import LoadRequest, entries_of
from ort_qdq_plugin.load.through_cache import (
    EntryFolder,
    NotRecordedError,
    entry_folder_through_cache,
    wait_until_on_disk,
)
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.ort.providers import check_providers
from ort_qdq_plugin.report import Report, StockReason

__all__ = ["activate", "deactivate", "load", "prepare", "report_of", "warm"]

# Names in the folder that onnxruntime-genai reads.
_ENTRY, _ORIGINAL, _CACHE = "ort-qdq-{}", "ort-qdq-original", "ort-qdq-cache"

_TRIES = 3  # at a folder in which files are replaced meanwhile


class ModelState(NamedTuple):
    """What this package keeps for one model or configuration."""

    folder: ConfigFolder | None  # the folder that onnxruntime-genai reads; None: the model's own
    reports: dict[str, Report]  # by the names of the ONNX files in the configuration
    entries: tuple[EntryFolder, ...] = ()  # the cache's entries that the folder refers to

    def is_current(self) -> bool:
        """Whether what was opened by path until now are these entries."""
        return all(folder.entry.is_current() for folder in self.entries)


class EntryReplacedError(QdqPluginError):
    """What was opened by path may be of two models."""


# Of models and configurations that are alive.
_states: weakref.WeakKeyDictionary[Any, ModelState] = weakref.WeakKeyDictionary()

_activated: Options | None = None


def prepare(folder_or_config: Any, *, options: Options | None = None) -> Any:
    """A configuration of onnxruntime-genai for a model with fused weights.

    Every ONNX file that genai_config.json names is prepared: in the cache if there is one (`Options.cache_dir`), else in a
    temporary folder that is removed when the configuration and all models created from it are gone.

    Args:
        folder_or_config: The model's folder, or an ``onnxruntime_genai.Config`` that was created after this package's genai
            support was imported or activated.
        options: Options of this package.

    Returns:
        An ``onnxruntime_genai.Config``. If nothing can be done for the model, it is that of the model's own folder.

    Raises:
        ModuleNotFoundError: onnxruntime-genai is not installed.
        RuntimeError: onnxruntime-genai cannot read the configuration.
        QdqPluginError, OSError: With ``Options(strict=True)``: this package failed. By default that is a warning, and the
            configuration is that of the model's own folder.
    """
    module = _module_with_replaced_methods()
    folder, calls = _folder_and_calls(_text_of_path(folder_or_config))
    if folder is None:
        return folder_or_config
    state = _new_state(folder, calls, options or Options())
    config = new_config(module, folder if state.folder is None else state.folder.path, calls)
    _states[config] = state
    return config


def load(folder_or_config: Any, *, options: Options | None = None) -> Any:
    """An ``onnxruntime_genai.Model`` with fused weights. Arguments and errors are those of `prepare`.

    >>> model = load("phi-3-mini-qdq")  # doctest: +SKIP
    >>> tokenizer = onnxruntime_genai.Tokenizer(model)  # doctest: +SKIP
    """
    module, options = _module_with_replaced_methods(), options or Options()
    while True:
        model = module.Model.__new__(module.Model)
        try:
            _create_model(model, _text_of_path(folder_or_config), options)
        except EntryReplacedError:
            if options.cache_dir is None:
                raise
            options = _without_cache(options)
        else:
            return model


def report_of(model: Any) -> dict[str, Report]:
    """What was done for an ``onnxruntime_genai.Model``: a report for each ONNX file, by its name in genai_config.json.

    {} for a model that this package did not create.
    """
    state = _states.get(model)
    return {} if state is None else dict(state.reports)


def warm(folder: str | os.PathLike[str], *, options: Options) -> dict[str, Report]:
    """Put a model's files into the cache, for later loads. onnxruntime-genai need not be installed.

    Args:
        folder: The model's folder.
        options: Options of this package, with a `cache_dir`. Later loads find the files if they have the same options.

    Returns:
        A report for each ONNX file that genai_config.json names. `Report.cache` is "used" if the file was in the cache
        before, and "made" if it is there now.

    Raises:
        ValueError: There is no `cache_dir`.
        QdqPluginError, OSError: The folder cannot be read, or a file cannot be put into the cache.
    """
    if options.cache_dir is None:
        raise ValueError("the options have no cache_dir")
    reports: dict[str, Report] = {}
    try:
        _entries(os.fspath(folder), model_files(read_config(os.fspath(folder))), options, False, reports)
    finally:
        # An entry that is not on the disk when the process ends would be lost when the system restarts.
        wait_until_on_disk()
    return reports


def activate(module: ModuleType, options: Options) -> None:
    """From now on, create every ``onnxruntime_genai.Model`` as `load` does."""
    global _activated
    _activated = options
    replace_methods(module, _create_as_activated)


def deactivate() -> None:
    """Undo `activate`. Models that exist stay as they are."""
    global _activated
    _activated = None


def _create_as_activated(model: Any, folder_or_config: Any) -> None:
    _create_model(model, folder_or_config, _activated)


def _module_with_replaced_methods() -> ModuleType:
    module = genai_module()
    replace_methods(module, _create_as_activated)
    return module


def _without_cache(options: Options) -> Options:
    return dataclasses.replace(options, cache_dir=None, share_weights=False)


def _text_of_path(folder_or_config: Any) -> Any:
    return os.fspath(folder_or_config) if isinstance(folder_or_config, os.PathLike) else folder_or_config


def _create_model(model: Any, folder_or_config: Any, options: Options | None) -> None:
    """Create the native model of a new ``onnxruntime_genai.Model``, in place of its own ``__init__``.

    Without options, only models whose Config `prepare` made are fused.
    """
    state = _state_of(folder_or_config)
    if state is not None:
        create_stock_model(model, folder_or_config)
        if not state.is_current():
            raise EntryReplacedError("an entry of the cache was replaced since it was prepared: prepare it again")
        _states[model] = state
        return
    folder, calls = _folder_and_calls(folder_or_config) if options is not None else (None, ())
    if folder is None or options is None:
        create_stock_model(model, folder_or_config)
        return
    state = _created_from_folder(model, folder, calls, options)
    if state.folder is None:
        create_stock_model(model, folder_or_config)
    _states[model] = state


def _created_from_folder(model: Any, folder: str, calls: tuple[Call, ...], options: Options) -> ModelState:
    """Create the native model from a folder with fused models. If the state has none, nothing was created."""
    # A temporary folder of this process alone, the last choice, is not replaced by others.
    for chosen in (options, options, _without_cache(options)):
        state, problem = _new_state(folder, calls, chosen), None
        if state.folder is None:
            return state
        try:
            create_stock_model(model, new_config(genai_module(), state.folder.path, calls))
        except Exception as error:
            problem = error
        is_current = state.is_current()
        if problem is None and is_current:
            return state
        state.folder.close()
        if problem is None:
            # It exists, and onnxruntime-genai does not create another one in the same object.
            break
        if is_current:
            if options.strict:
                raise problem
            return ModelState(None, dict.fromkeys(state.reports, _failed(problem)))
    raise EntryReplacedError(f"{folder}: an entry of the cache was replaced while it was opened: load it again")


def _state_of(folder_or_config: Any) -> ModelState | None:
    try:
        return _states.get(folder_or_config)
    except TypeError:  # a string, or something that onnxruntime-genai refuses
        return None


def _folder_and_calls(folder_or_config: Any) -> tuple[str | None, tuple[Call, ...]]:
    """The model's folder, and the calls that have changed its configuration. None: that is not known."""
    if isinstance(folder_or_config, str):
        return folder_or_config, ()
    return record_of(folder_or_config)


def _new_state(folder: str, calls: tuple[Call, ...], options: Options) -> ModelState:
    """Make the folder that onnxruntime-genai reads. If there is none, the reports have the reason."""
    try:
        config = read_config(folder)
    except (QdqPluginError, OSError):
        if options.strict:
            raise
        # onnxruntime-genai has an error for this.
        return ModelState(None, {})
    files: list[ModelFile] = []
    reports: dict[str, Report] = {}
    try:
        files = model_files(config)
        changed = model_files(config_after(calls, config))
        for _ in range(_TRIES - 1):
            with suppress(SourceChangedError):
                return _fused_folder(folder, config, changed, options, reports)
        return _fused_folder(folder, config, changed, options, reports)
    except LeaveToStock as stock:
        log.info("%s: stock onnxruntime-genai: %s", folder, stock)
        report = Report("stock", stock.reason, stock.detail)
    except Exception as error:
        if options.strict and not isinstance(error, (QdqPluginError, OSError)):
            raise QdqPluginError(f"{type(error).__name__}: {error}") from error
        if options.strict:
            raise
        reports, report = {}, _failed(error)
    return ModelState(None, {file.filename: reports.get(file.filename, report) for file in files})


def _failed(error: Exception) -> Report:
    """Warn that a model is left to stock after this error; the report of its files."""
    report = Report("stock", StockReason.ERROR, f"{type(error).__name__}: {error}")
    # Not the error itself: a handler that keeps the record would keep the files that the error leads to.
    log.warning("loading with stock onnxruntime-genai, without this package: %s", report.stock_detail)
    return report


def _fused_folder(
    folder: str, config: Json, files: list[ModelFile], options: Options, reports: dict[str, Report]
) -> ModelState:
    """A folder with another configuration, which names the cache's entries; adds a report for each file."""
    if any("custom_ops_library" in file.session_options for file in files):
        # onnxruntime-genai looks for it below the folder that it reads, and refuses one elsewhere.
        raise LeaveToStock(StockReason.GENAI_CUSTOM_OPS)
    temporary = new_folder(None if options.spill_dir is None else os.fspath(options.spill_dir), folder)
    try:
        is_temporary = options.cache_dir is None
        without = dataclasses.replace(options, cache_dir=os.path.join(temporary.path, _CACHE))
        if is_temporary:
            options = without
        try:
            entries = _entries(folder, files, options, is_temporary, reports)
        except (NotRecordedError, OSError) as problem:
            if is_temporary or isinstance(problem, SourceUnreadableError):
                raise
            log.warning("preparing without the cache: %s", problem)
            reports.clear()
            entries = _entries(folder, files, dataclasses.replace(without, share_weights=False), True, reports)
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
        temporary.fill(folder, rewritten(config, filenames, settings), links)
        return ModelState(temporary, reports, tuple(entries.values()))
    except BaseException:
        temporary.close()
        raise


def _entries(
    folder: str, files: list[ModelFile], options: Options, is_temporary: bool, reports: dict[str, Report]
) -> dict[str, EntryFolder]:
    """The entries of the files that can be fused, by their names; adds a report for each file."""
    entries: dict[str, EntryFolder] = {}
    for file in files:
        path = os.path.join(os.path.abspath(folder), file.filename)
        try:
            entries[file.filename] = _entry_for(path, file, options, is_temporary)
            reports[file.filename] = entries[file.filename].report
        except LeaveToStock as stock:
            reports[file.filename] = Report("stock", stock.reason, stock.detail)
        log.info("%s: %s", path, reports[file.filename].summary())
    return entries


def _entry_for(path: str, file: ModelFile, options: Options, is_temporary: bool) -> EntryFolder:
    check_providers(file.providers)
    request = LoadRequest(path, file.to_session_options(), options, self_contained=True, temporary=is_temporary)
    journal = Journal()
    return entry_folder_through_cache(request, journal, functools.partial(journey.prepare, request, journal))
