"""Models of onnxruntime-genai, created from prepared folders.

onnxruntime-genai creates its sessions in C++. What can be exchanged is the folder that it reads: see folder.py. The folder
lives as long as the model, since tokenizers and processors are read from it later.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from types import ModuleType
from typing import Any, NamedTuple

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError, SourceChangedError
from ort_qdq_plugin.genai import calls
from ort_qdq_plugin.genai.calls import Call
from ort_qdq_plugin.genai.config import Json, ModelFile, model_files, read_config, rewritten
from ort_qdq_plugin.genai.folder import ConfigFolder, new_folder
from ort_qdq_plugin.load import journey
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.through_cache import EntryFolder, entry_folder_through_cache, wait_until_on_disk
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.ort.providers import check_providers
from ort_qdq_plugin.report import Report

__all__ = ["activate", "deactivate", "load", "prepare", "report_of", "warm"]

_ENTRY, _ORIGINAL = "ort-qdq-{}", "ort-qdq-original"
_CACHE = "ort-qdq-cache"


class Prepared(NamedTuple):
    """What was prepared of a model.

    Attributes:
        folder: What onnxruntime-genai reads; None: the model's own, untouched.
        reports: By the names that the configuration has for its files.
        entries: The prepared files.
    """

    folder: ConfigFolder | None
    reports: dict[str, Report]
    entries: tuple[EntryFolder, ...] = ()


# What models and configurations that are alive were created from.
_prepared: weakref.WeakKeyDictionary[Any, Prepared] = weakref.WeakKeyDictionary()

_activated: Options | None = None


def prepare(folder_or_config: Any, *, options: Options | None = None) -> Any:
    """A configuration of onnxruntime-genai for a model with fused weights.

    Every ONNX file that genai_config.json names is prepared: in the cache if there is one (`Options.cache_dir`), else in a
    temporary folder that is gone when the configuration and all models created from it are.

    Args:
        folder_or_config: The model's folder, or an ``onnxruntime_genai.Config`` that was created after this package's genai
            support was imported or activated.
        options: This package's own.

    Returns:
        An ``onnxruntime_genai.Config``. Where nothing can be done for the model it is that of the untouched folder.

    Raises:
        ModuleNotFoundError: onnxruntime-genai is not installed.
        RuntimeError: onnxruntime-genai cannot read the configuration.
        QdqPluginError, OSError: With ``Options(strict=True)``: why this package could not help the model.
    """
    module = _genai()
    folder, said = _asked(_without_path_object(folder_or_config))
    if folder is None:
        return folder_or_config
    prepared = _prepared_or_not(folder, said, options or Options())
    config = calls.new_config(module, folder if prepared.folder is None else prepared.folder.path, said)
    _prepared[config] = prepared
    return config


def load(folder_or_config: Any, *, options: Options | None = None) -> Any:
    """An ``onnxruntime_genai.Model`` on fused weights. Arguments and errors are those of `prepare`.

    >>> model = load("phi-3-mini-qdq")  # doctest: +SKIP
    >>> tokenizer = onnxruntime_genai.Tokenizer(model)  # doctest: +SKIP
    """
    module = _genai()
    model = module.Model.__new__(module.Model)
    _create_model(model, _without_path_object(folder_or_config), options or Options())
    return model


def report_of(model: Any) -> dict[str, Report]:
    """What was done for an ``onnxruntime_genai.Model``: a report for each ONNX file, by its name in genai_config.json.

    {} for a model that this package did not create.
    """
    prepared = _prepared.get(model)
    return {} if prepared is None else dict(prepared.reports)


def warm(folder: str | os.PathLike[str], *, options: Options) -> dict[str, Report]:
    """Put a model's files into the cache, for loads to come. onnxruntime-genai need not be installed.

    Args:
        folder: The model's folder.
        options: This package's own; they have a `cache_dir`. Later loads find the files if theirs are the same.

    Returns:
        A report for each ONNX file that genai_config.json names; `Report.cache` says whether it was there already.

    Raises:
        ValueError: There is no `cache_dir`.
        QdqPluginError, OSError: The folder cannot be read, or a file not be put there.
    """
    if options.cache_dir is None:
        raise ValueError("the options have no cache_dir")
    reports: dict[str, Report] = {}
    try:
        _entries(os.fspath(folder), model_files(read_config(os.fspath(folder))), options, False, reports)
    finally:
        # The process may end now; what it has not written by then does not survive the system's next start.
        wait_until_on_disk()
    return reports


def activate(module: ModuleType, options: Options) -> None:
    """Create every ``onnxruntime_genai.Model`` from now on as `load` does."""
    global _activated
    _activated = options
    calls.replace_methods(module, _create_as_activated)


def deactivate() -> None:
    """Undo `activate`. Models that were created meanwhile stay as they are."""
    global _activated
    _activated = None


def _create_as_activated(model: Any, folder_or_config: Any) -> None:
    _create_model(model, folder_or_config, _activated)


def _genai() -> ModuleType:
    """onnxruntime_genai, which tells of its configurations from now on."""
    module = calls.genai()
    calls.replace_methods(module, _create_as_activated)
    return module


def _without_path_object(folder_or_config: Any) -> Any:
    return os.fspath(folder_or_config) if isinstance(folder_or_config, os.PathLike) else folder_or_config


def _create_model(model: Any, folder_or_config: Any, options: Options | None) -> None:
    """Create the native model of an ``onnxruntime_genai.Model``, in place of its own ``__init__``.

    Args:
        model: A new object of that class.
        folder_or_config: What it is to be created from.
        options: This package's own; None: models are only prepared whose configuration `prepare` gave.
    """
    known = _known(folder_or_config)
    if known is not None:
        calls.create_stock_model(model, folder_or_config)
        _prepared[model] = known
        return
    folder, said = _asked(folder_or_config) if options is not None else (None, ())
    if folder is None or options is None:
        calls.create_stock_model(model, folder_or_config)
        return
    prepared = _prepared_or_not(folder, said, options)
    if prepared.folder is not None:
        if _created(model, prepared, said, options):
            _prepared[model] = prepared
            return
        prepared.folder.close()
    calls.create_stock_model(model, folder_or_config)
    _prepared[model] = prepared._replace(folder=None, entries=())


def _known(folder_or_config: Any) -> Prepared | None:
    try:
        return _prepared.get(folder_or_config)
    except TypeError:  # a string, or what onnxruntime-genai will refuse
        return None


def _created(model: Any, prepared: Prepared, said: tuple[Call, ...], options: Options) -> bool:
    """Create the native model from a prepared folder; False if that failed."""
    assert prepared.folder is not None
    try:
        calls.create_stock_model(model, calls.new_config(calls.genai(), prepared.folder.path, said))
        if not all(entry.is_current() for entry in prepared.entries):
            raise SourceChangedError("an entry of the cache was exchanged while it was being read")
    except Exception as error:
        if options.strict:
            raise
        _warn(error)
        return False
    return True


def _asked(folder_or_config: Any) -> tuple[str | None, tuple[Call, ...]]:
    """The folder that is asked for and what was changed in its configuration; None where that is not known."""
    if isinstance(folder_or_config, str):
        return folder_or_config, ()
    return calls.record_of(folder_or_config)


def _prepared_or_not(folder: str, said: tuple[Call, ...], options: Options) -> Prepared:
    """What can be prepared of a model. Otherwise why not: in its reports, and as a warning if something failed."""
    reports: dict[str, Report] = {}
    try:
        config = read_config(folder)
    except (QdqPluginError, OSError):
        if options.strict:
            raise
        # onnxruntime-genai says what is wrong with it.
        return Prepared(None, reports)
    try:
        return _prepare(folder, config, calls.effect_of(said, config), options, reports)
    except LeaveToStock as because:
        log.info("%s: stock onnxruntime-genai: %s", folder, because)
    except (QdqPluginError, OSError) as error:
        if options.strict:
            raise
        _warn(error)
    except Exception as error:
        if options.strict:
            raise QdqPluginError(f"{type(error).__name__}: {error}") from error
        _warn(error)
    return Prepared(None, {name: report._replace(route="stock") for name, report in reports.items()})


def _warn(error: Exception) -> None:
    # Not the error itself: whoever keeps the record would keep what was prepared.
    log.warning("loading with stock onnxruntime-genai, without this package: %s", f"{type(error).__name__}: {error}")


def _prepare(folder: str, config: Json, effective: Json, options: Options, reports: dict[str, Report]) -> Prepared:
    files = model_files(effective)
    if any("custom_ops_library" in file.session_options for file in files):
        # It would be looked for, and refused, below the folder that the configuration is read from.
        raise LeaveToStock("its configuration has a custom_ops_library")
    temporary = new_folder(None if options.spill_dir is None else os.fspath(options.spill_dir), folder)
    try:
        return _prepare_in(temporary, folder, config, files, options, reports)
    except BaseException:
        temporary.close()
        raise


def _prepare_in(
    temporary: ConfigFolder, folder: str, config: Json, files: list[ModelFile], options: Options, reports: dict[str, Report]
) -> Prepared:
    is_temporary = options.cache_dir is None
    if is_temporary:
        options = dataclasses.replace(options, cache_dir=os.path.join(temporary.path, _CACHE))
    entries = _entries(folder, files, options, is_temporary, reports)
    if not entries:
        raise LeaveToStock("nothing in it can be fused")
    filenames = {file.filename: os.path.join(_ORIGINAL, file.filename) for file in files}
    links = {_ORIGINAL: os.path.abspath(folder)}
    for number, (filename, entry) in enumerate(entries.items()):
        filenames[filename] = os.path.join(_ENTRY.format(number), os.path.basename(entry.model))
        links[_ENTRY.format(number)] = os.path.dirname(entry.model)
    temporary.fill(folder, rewritten(config, filenames), links)
    return Prepared(temporary, reports, tuple(entries.values()))


def _entries(
    folder: str, files: list[ModelFile], options: Options, is_temporary: bool, reports: dict[str, Report]
) -> dict[str, EntryFolder]:
    """The entries of the files that can be fused, by their names; a report for each file."""
    entries: dict[str, EntryFolder] = {}
    for file in files:
        path = os.path.join(os.path.abspath(folder), file.filename)
        try:
            entries[file.filename] = _entry_for(path, file, options, is_temporary)
            reports[file.filename] = entries[file.filename].report
        except LeaveToStock as because:
            reports[file.filename] = Report("stock", passed_through=str(because))
        log.info("%s: %s", path, reports[file.filename].summary())
    return entries


def _entry_for(path: str, file: ModelFile, options: Options, is_temporary: bool) -> EntryFolder:
    check_providers(file.providers)
    request = LoadRequest(path, file.to_session_options(), options, self_contained=True, temporary=is_temporary)
    journal = Journal()
    return entry_folder_through_cache(request, journal, functools.partial(journey.prepare, request, journal))
