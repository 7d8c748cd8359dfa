"""Switching this package on for programs that create InferenceSessions themselves.

The class stays. Only the method by which it creates its native session is replaced, and those that run it (ort/runs.py). So
references to the class, its subclasses, ``isinstance``, its signature and pickles stay what they are, whichever module
imported it, and when.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

# Nothing that imports onnxruntime: this module is imported while onnxruntime is being imported (startup.py), perhaps by a
# module of this package.
from ort_qdq_plugin import log
from ort_qdq_plugin.arguments import takes_options
from ort_qdq_plugin.options import Options, options_from_environment
from ort_qdq_plugin.ort.keys import CREATE_METHOD
from ort_qdq_plugin.switch.import_hook import wait_no_more, when_imported
from ort_qdq_plugin.system.environment import LOG, LOG_FILE, RUN_LOG_FILE
from ort_qdq_plugin.system.forks import fork_lock, in_forked_child

__all__ = ["activate", "activate_from_environment", "activate_genai", "deactivate"]

_LEVELS = ("debug", "info", "warning", "error", "critical")

_lock = threading.Lock()
_options = Options()
_stock: dict[tuple[type, str], Any] = {}  # the methods that are replaced, by their class and name


@in_forked_child
def _renew_lock() -> None:
    """In a forked child: the thread that held the lock does not exist there."""
    global _lock
    _lock = threading.Lock()


@takes_options()
def activate(options: Options | None = None) -> None:
    """From now on, load every ``onnxruntime.InferenceSession`` of this process as `create_session` does.

    Those of model packages too (``onnxruntime.ModelPackageContext``), and every ``onnxruntime_genai.Model`` as
    ``ort_qdq_plugin.genai.load`` does.

    Args:
        options: Those of all sessions and models. A second call replaces them.

    Raises:
        TypeError: `options` is something else, or an option is given as an argument of its own. The message says what to
            pass.
        ImportError: ONNX Runtime is not installed, or cannot be imported. It says what to type.
    """
    global _options
    # Before the lock: another thread may be importing onnxruntime, and wait for the lock afterwards (startup.py).
    try:
        import onnxruntime

        with fork_lock:
            from ort_qdq_plugin.ort.packages import package_methods
            from ort_qdq_plugin.ort.runs import RUN_METHODS, counted
    except (ImportError, AttributeError) as error:
        with fork_lock:
            from ort_qdq_plugin.ort.installed import explained
        raise ImportError(explained(error) or str(error)) from error

    with _lock:
        _options = options or Options()
        if not _stock:
            for name in (CREATE_METHOD, *RUN_METHODS):
                owner = next(owner for owner in onnxruntime.InferenceSession.__mro__ if name in vars(owner))
                stock = _stock[owner, name] = vars(owner)[name]
                replaced = SimpleNamespace(**{name: stock})
                setattr(owner, name, _replacement_of(stock) if name == CREATE_METHOD else counted(replaced, name))
            for (owner, name), replacing in zip(package_methods(), (_selecting, _creating), strict=False):
                _stock[owner, name] = vars(owner)[name]
                setattr(owner, name, replacing(getattr(owner, name)))
    when_imported("onnxruntime_genai", activate_genai)


def activate_genai(module: ModuleType) -> None:
    """`activate` for the module onnxruntime_genai, which was just imported."""
    if not _stock:
        return
    try:
        with fork_lock:
            from ort_qdq_plugin.genai import models
        models.activate(module, _options)
    except Exception as error:
        # The program's import of it must not fail, whichever version it is.
        log.warning("cannot be used for onnxruntime-genai: %s: %s", type(error).__name__, error)


def deactivate() -> None:
    """Undo `activate`, and ``ORT_QDQ_PLUGIN=1``, also before onnxruntime is imported. It raises nothing.

    Sessions and models that exist stay as they are.
    """
    wait_no_more()
    with _lock:
        for (owner, name), method in _stock.items():
            setattr(owner, name, method)
        _stock.clear()
    if "ort_qdq_plugin.genai.models" in sys.modules:
        with fork_lock:
            from ort_qdq_plugin.genai import models
        models.deactivate()


def activate_from_environment() -> None:
    """`activate` with the options of the ``ORT_QDQ_PLUGIN_*`` variables; log as ``_LOG`` and ``_LOG_FILE`` have it."""
    if path := os.environ.get(RUN_LOG_FILE):
        _log_to(path, "info", RUN_LOG_FILE)
    _log_as_wanted(os.environ.get(LOG, ""), os.environ.get(LOG_FILE, ""))
    activate(options_from_environment(os.environ))


def _replacement_of(stock: Any) -> Any:
    @functools.wraps(stock)
    def create(self: Any, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        try:
            with fork_lock:
                from ort_qdq_plugin.load.start import create_native_session
                from ort_qdq_plugin.load.state import SessionState
                from ort_qdq_plugin.ort.hook import CreateCall
                from ort_qdq_plugin.ort.runs import creating
        except Exception as error:
            log.warning("cannot be used: %s: %s", type(error).__name__, error)
            stock(self, providers, provider_options, disabled_optimizers)
            return
        state = self.__dict__.get("_ort_qdq_state")
        if state is None:
            state = self._ort_qdq_state = SessionState(_options)
        with creating(self):
            create_native_session(self, state, CreateCall(providers, provider_options, disabled_optimizers))

    create._ort_qdq_stock = stock  # type: ignore[attr-defined]  # for ort/hook.py, should it be imported only now
    return create


def _selecting(stock: Any) -> Any:
    """Of the context of a model package (ort/packages.py)."""

    @functools.wraps(stock)
    def select_component(self: Any, *arguments: Any, **keywords: Any) -> Any:
        with fork_lock:
            from ort_qdq_plugin.ort.packages import remember
        component = stock(self, *arguments, **keywords)
        remember(component, self)
        return component

    return select_component


def _creating(stock: Any) -> Any:
    """Of a component of a model package."""

    @functools.wraps(stock)
    def create_session(self: Any, sess_options: Any = None) -> Any:
        import onnxruntime

        with fork_lock:
            from ort_qdq_plugin.ort.packages import model_of, session_from
        try:
            model = model_of(self, sess_options)
        except Exception as error:
            log.warning("cannot be used for a model package: %s: %s", type(error).__name__, error)
            model = None
        if model is None:
            return stock(self, sess_options)
        made = onnxruntime.InferenceSession(*model, enable_fallback=0)
        session = session_from(made)
        session._ort_qdq_state = made._ort_qdq_state
        return session

    return create_session


def _log_as_wanted(level: str, path: str) -> None:
    """Append log records of this level and above to a file, or write them to stderr if `path` is "".

    For programs that set up no logging. The level is "info", one line for each session, if only a file is given.
    """
    name = level.strip().lower() or ("info" if path else "")
    if name in _LEVELS:
        _log_to(path, name, LOG_FILE)
    elif name:
        log.warning("%s is %r, must be one of %s: ignored", LOG, level, ", ".join(_LEVELS))


def _log_to(path: str, level: str, variable: str) -> None:
    """Append records to a file that a variable names, or write them to stderr if `path` is ""."""
    import logging

    logger = logging.getLogger(log.NAME)
    handler: logging.Handler = logging.StreamHandler()
    try:
        if path:
            handler = logging.FileHandler(os.path.expanduser(path), encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        log.warning("%s is %r, must be a file that can be written: %s: ignored", variable, path, problem)
        return
    handler.setFormatter(logging.Formatter("ort-qdq-plugin[%(process)d]: %(message)s"))
    handler.setLevel(level.upper())
    logger.addHandler(handler)
    if not logger.level or handler.level < logger.level:
        logger.setLevel(handler.level)
    logger.propagate = False
