"""Models of onnxruntime-genai, created from folders with fused models.

onnxruntime-genai creates its sessions in C++, so it gets another folder to read: see folder.py. That folder lives as long as
the model, since tokenizers and processors are read from it later.
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from ort_qdq_plugin import log
from ort_qdq_plugin.arguments import takes_options
from ort_qdq_plugin.errors import ModelError, QdqPluginError, error_text
from ort_qdq_plugin.genai.calls import (
    Call,
    UnknownGenAIError,
    create_stock_model,
    genai_module,
    new_config,
    record_of,
    replace_methods,
)
from ort_qdq_plugin.genai.config import named_files
from ort_qdq_plugin.genai.prepared import ModelState, Reports, entries_for, failed, new_state, without_cache
from ort_qdq_plugin.load.journal import shown, tell_stage
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.load.through_cache import wait_until_on_disk
from ort_qdq_plugin.load.unloadable import check_complete
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.report import Report

__all__ = ["activate", "deactivate", "load", "prepare", "report_of", "warm"]


class EntryReplacedError(QdqPluginError):
    """What was opened by path may be of two models."""


# Of models and configurations that are alive.
_states: weakref.WeakKeyDictionary[Any, ModelState] = weakref.WeakKeyDictionary()

_activated: Options | None = None


@takes_options()
def prepare(folder_or_config: Any, *, options: Options | None = None) -> Any:
    """A configuration of onnxruntime-genai for a model with fused weights.

    Every ONNX file that genai_config.json names is prepared: in the cache if there is one (`Options.cache_dir`), else in a
    temporary folder that is removed when the configuration and all models created from it are gone. If the configuration is
    changed afterwards such that something else has to be prepared (accuracy level, graph optimization level, providers), its
    models are prepared again when they are created.

    Args:
        folder_or_config: The model's folder, or an ``onnxruntime_genai.Config`` that was created after this package's genai
            support was imported or activated.
        options: Options of this package.

    Returns:
        An ``onnxruntime_genai.Config``. If nothing can be done for the model, it is that of the model's own folder.

    Raises:
        ModuleNotFoundError: onnxruntime-genai is not installed.
        TypeError: `options` is something else, or an option is given as an argument of its own. The message says what to
            pass.
        RuntimeError: onnxruntime-genai cannot read the configuration.
        QdqPluginError, OSError: With ``Options(strict=True)``: this package failed. By default that is a warning, and the
            configuration is that of the model's own folder.
    """
    module, given, options = genai_module(), _text_of_path(folder_or_config), options or Options()
    if not _is_known(module, options):
        return module.Config(given) if isinstance(given, str) else given
    folder, calls = _folder_and_calls(given)
    if folder is None:
        _warn_of_unknown(module, given)
        return given
    state = new_state(folder, calls, options)
    with _noting_what_is_wrong(folder):
        config = _config_of(state, folder, calls)
    _states[config] = state
    return config


@takes_options()
def load(folder_or_config: Any, *, options: Options | None = None) -> Any:
    """Create a model of onnxruntime-genai with fused weights.

    >>> model = load("phi-3-mini-qdq")
    >>> tokenizer = onnxruntime_genai.Tokenizer(model)

    Args:
        folder_or_config: As for `prepare`, or what `prepare` returned.
        options: Options of this package. None: those that `prepare` was given, if it was called.

    Returns:
        An ``onnxruntime_genai.Model``. If nothing can be done for the model, it is that of the model's own folder.

    Raises:
        ModuleNotFoundError: onnxruntime-genai is not installed.
        RuntimeError: onnxruntime-genai cannot create the model.
        QdqPluginError, OSError: With ``Options(strict=True)``: this package failed. By default that is a warning, and the
            model is that of the model's own folder.
    """
    module, given = genai_module(), _text_of_path(folder_or_config)
    prepared = _state_of(given)
    if prepared is not None and options is not None and options != prepared.options:
        given = prepare(given, options=options)
    options = options or Options()
    if not _is_known(module, options):
        return module.Model(given)
    _warn_of_unknown(module, given)
    while True:
        model = module.Model.__new__(module.Model)
        try:
            _create_model(model, given, options)
        except EntryReplacedError:
            if options.cache_dir is None:
                raise
            options = without_cache(options)
        else:
            return model


def report_of(model: Any) -> dict[str, Report]:
    """What was done for a model of onnxruntime-genai. It raises nothing.

    Args:
        model: An ``onnxruntime_genai.Model`` or ``onnxruntime_genai.Config``.

    Returns:
        A `Report` for each ONNX file, by its name in genai_config.json. Empty for a model that this package did not create.
        Printed, it is a summary for each file and a line for each weight.
    """
    state = _state_of(model)
    return Reports() if state is None else Reports(state.reports)


@takes_options()
def warm(folder: str | os.PathLike[str], *, options: Options) -> dict[str, Report]:
    """Put a model's files into the cache, for later loads. onnxruntime-genai need not be installed.

    Args:
        folder: The model's folder.
        options: Options of this package, with an `Options.cache_dir`. Later loads find the files if they have the same
            options.

    Returns:
        A report for each ONNX file that genai_config.json names. `Report.cache` is "used" if the file was in the cache
        before, and "made" if it is there now.

    Raises:
        ValueError: There is no `Options.cache_dir`.
        ModelError, OSError: The folder, or a model that it names, cannot be opened.
        QdqPluginError, OSError: A model cannot be put into the cache.
    """
    if options.cache_dir is None:
        raise ValueError("the options have no cache_dir: Options(cache_dir=...) names the directory of the cache")
    reports, path = Reports(), os.path.abspath(os.fspath(folder))
    files = named_files(path)
    for file in files:
        check_complete(LoadRequest(os.path.join(path, file.filename), None, options))
    try:
        entries_for(path, files, options, False, reports, counts_as_use=False)
    finally:
        if not isinstance(options.progress, str):
            tell_stage(options.progress, "disk")
        # An entry that is not on the disk when the process ends would be lost when the system restarts.
        wait_until_on_disk()
    return reports


def activate(module: ModuleType, options: Options) -> None:
    """From now on, create every ``onnxruntime_genai.Model`` as `load` does."""
    global _activated
    _activated = options
    _is_known(module, options)


def deactivate() -> None:
    """Undo `activate`. Models that exist stay as they are."""
    global _activated
    _activated = None


def _create_as_activated(model: Any, folder_or_config: Any) -> None:
    _create_model(model, folder_or_config, _activated)


def _is_known(module: ModuleType, options: Options) -> bool:
    """Replace the methods. False: this version has something else in their place, of which there is one warning."""
    try:
        replace_methods(module, _create_as_activated)
    except UnknownGenAIError as error:
        if options.strict:
            raise
        _warn_once(str(error))
        return False
    return True


def _warn_of_unknown(module: ModuleType, given: Any) -> None:
    """Warn of a configuration that was created when nothing was recorded yet."""
    if isinstance(given, module.Config) and _folder_and_calls(given)[0] is None:
        log.warning(
            "nothing is fused: the folder of this configuration is not known. Import onnxruntime_genai, "
            "then ort_qdq_plugin.genai, and create configurations by Config(folder) after that"
        )


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


def _text_of_path(folder_or_config: Any) -> Any:
    return os.fsdecode(folder_or_config) if isinstance(folder_or_config, (bytes, os.PathLike)) else folder_or_config


def _create_model(model: Any, folder_or_config: Any, options: Options | None) -> None:
    """Create the native model of a new ``onnxruntime_genai.Model``, in place of its own ``__init__``.

    Without options, only models whose Config `prepare` made are fused.
    """
    with _noting_what_is_wrong(_folder_and_calls(folder_or_config)[0]):
        _create_model_of(model, folder_or_config, options)


@contextmanager
def _noting_what_is_wrong(folder: str | None) -> Iterator[None]:
    """While the block runs, errors of onnxruntime-genai get a note if the model's folder is not as it should be."""
    try:
        yield
    except QdqPluginError:
        raise
    except Exception as error:
        if folder is not None and (problem := _problem_of(folder)):
            error.add_note(f"ort-qdq-plugin: {problem}")
        raise


def _problem_of(folder: str) -> str:
    try:
        for file in named_files(folder):
            check_complete(LoadRequest(os.path.join(folder, file.filename), None, Options()))
    except (ModelError, OSError) as problem:
        return error_text(problem)
    return ""


def _create_model_of(model: Any, folder_or_config: Any, options: Options | None) -> None:
    prepared, (folder, calls) = _state_of(folder_or_config), _folder_and_calls(folder_or_config)
    if prepared is not None and folder is not None and prepared.holds_after(calls):
        needs_overlay = prepared.overlay_after(calls)
        with _creating(folder, prepared.options):
            create_stock_model(model, _config_of(prepared, folder, calls) if needs_overlay else folder_or_config)
        if not prepared.is_current():
            raise EntryReplacedError("an entry of the cache was replaced since it was prepared: prepare it again")
        _states[model] = prepared
        return
    if prepared is not None:
        log.info("%s: its configuration was changed after it was prepared: it is prepared again", folder)
        options = prepared.options
    if folder is None or options is None:
        create_stock_model(model, folder_or_config)
        return
    state = _created_from_folder(model, folder, calls, options)
    if state.folder is None:
        # What was prepared is a configuration of another folder.
        create_stock_model(model, folder_or_config if prepared is None else _config_of(state, folder, calls))
    _states[model] = state


def _config_of(state: ModelState, folder: str, calls: tuple[Call, ...]) -> Any:
    """A new Config for a model's folder as it was prepared, after these calls."""
    path = folder if state.folder is None else state.folder.path
    return new_config(genai_module(), path, calls, of=folder, overlay=state.overlay_after(calls))


def _created_from_folder(model: Any, folder: str, calls: tuple[Call, ...], options: Options) -> ModelState:
    """Create the native model from a folder with fused models. If the state has none, nothing was created."""
    # A temporary folder of this process alone, the last choice, is not replaced by others.
    for chosen in (options, options, without_cache(options)):
        state, problem = new_state(folder, calls, chosen), None
        if state.folder is None:
            return state
        try:
            with _creating(folder, chosen):
                create_stock_model(model, _config_of(state, folder, calls))
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
            return state._replace(folder=None, entries=(), reports=Reports(dict.fromkeys(state.reports, failed(problem))))
    raise EntryReplacedError(f"{folder}: an entry of the cache was replaced while it was opened: load it again")


@contextmanager
def _creating(folder: str, options: Options) -> Iterator[None]:
    with shown(options.progress, folder) as progress:
        tell_stage(progress, "create session")
        yield


def _state_of(folder_or_config: Any) -> ModelState | None:
    try:
        return _states.get(folder_or_config)
    except TypeError:  # a string, or something that onnxruntime-genai refuses
        return None


def _folder_and_calls(folder_or_config: Any) -> tuple[str | None, tuple[Call, ...]]:
    """The model's folder, and the calls that have changed its configuration. None: that is not known."""
    if isinstance(folder_or_config, (bytes, str)):
        return os.fsdecode(folder_or_config), ()
    return record_of(folder_or_config)


# What configurations are told is recorded from here on. A program may create one before it calls anything of this package.
if "onnxruntime_genai" in sys.modules:
    with suppress(UnknownGenAIError):
        replace_methods(sys.modules["onnxruntime_genai"], _create_as_activated)
