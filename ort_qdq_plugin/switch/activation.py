"""Switching this package on for programs that create InferenceSessions themselves.

The class stays. Only the one method by which it creates its native session is replaced. So references to the class, its
subclasses, ``isinstance``, its signature and pickles stay what they are, whoever imported what, and when.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

# Nothing that imports onnxruntime: this module is imported while onnxruntime is being imported (startup.py), perhaps by a
# module of this package.
from ort_qdq_plugin import log
from ort_qdq_plugin.options import BUFFERS, MAX_ACCURACY_LEVEL, VERIFY, Options, is_accuracy_level
from ort_qdq_plugin.ort.keys import CREATE_METHOD
from ort_qdq_plugin.switch.import_hook import when_imported
from ort_qdq_plugin.system.environment import NO, PREFIX, YES
from ort_qdq_plugin.system.forks import in_forked_child

__all__ = [
    "PREFIX",
    "activate",
    "activate_from_environment",
    "activate_genai",
    "deactivate",
    "options_from_environment",
]

_LEVELS = ("debug", "info", "warning", "error", "critical")

_lock = threading.Lock()
_options = Options()
_stock: Any = None


@in_forked_child
def _begin_anew_in_child() -> None:
    """The thread that held the lock when the process was forked does not exist here."""
    global _lock
    _lock = threading.Lock()


def activate(options: Options | None = None) -> None:
    """Load the model of every ``onnxruntime.InferenceSession`` created from now on in this process as create_session does.

    `report_of` tells of each session. So is every ``onnxruntime_genai.Model``, as by ``ort_qdq_plugin.genai.load``.

    Args:
        options: For all of them. A second call changes them.
    """
    global _options, _stock
    # Before the lock: another thread may be importing it, and about to come here (startup.py).
    import onnxruntime

    with _lock:
        _options = options or Options()
        if _stock is None:
            _stock = getattr(onnxruntime.InferenceSession, CREATE_METHOD)
            setattr(onnxruntime.InferenceSession, CREATE_METHOD, _creating_method(_stock))
    when_imported("onnxruntime_genai", activate_genai)


def activate_genai(module: ModuleType) -> None:
    """`activate` for onnxruntime-genai, which was just imported."""
    if _stock is None:
        return
    try:
        from ort_qdq_plugin.genai import models

        models.activate(module, _options)
    except Exception as error:
        # Whoever imports it must not fail, whatever version it is.
        log.warning("cannot be used for onnxruntime-genai: %s: %s", type(error).__name__, error)


def deactivate() -> None:
    """Undo `activate`. Sessions that were loaded meanwhile stay as they are."""
    global _stock
    import onnxruntime

    with _lock:
        if _stock is not None:
            setattr(onnxruntime.InferenceSession, CREATE_METHOD, _stock)
            _stock = None
    if "ort_qdq_plugin.genai.models" in sys.modules:
        from ort_qdq_plugin.genai import models

        models.deactivate()


def activate_from_environment() -> None:
    """`activate` with the options that the environment gives, and the log that it asks for."""
    _log(os.environ.get(f"{PREFIX}_LOG", ""), os.environ.get(f"{PREFIX}_LOG_FILE", ""))
    activate(options_from_environment(os.environ))


def options_from_environment(environment: Mapping[str, str]) -> Options:
    """The Options that the ``ORT_QDQ_PLUGIN_*`` variables give. One that makes no sense is ignored, with a warning."""
    chosen: dict[str, Any] = {}

    def choose(option: str, parse: Callable[[str], Any], allowed: str) -> None:
        variable = f"{PREFIX}_{option.upper()}"
        text = environment.get(variable, "").strip()
        if not text:
            return
        try:
            chosen[option] = parse(text)
        except ValueError:
            log.warning("%s is %r, must be %s: ignored", variable, text, allowed)

    choose("accuracy_level", _accuracy_level, f"a whole number from 0 to {MAX_ACCURACY_LEVEL}")
    choose("buffer", _buffer, f"one of {', '.join(BUFFERS)}")
    choose("spill_dir", _directory, "an existing directory")
    choose("threads", _threads, "a whole number of at least 1")
    choose("strict", _flag, "0 or 1")
    choose("cache_dir", str, "a directory")
    choose("cache_max_bytes", _byte_count, "a whole number of bytes")
    choose("verify", _verify, f"one of {', '.join(VERIFY)}")
    choose("share_weights", _flag, "0 or 1")
    if chosen.get("share_weights") and "cache_dir" not in chosen:
        log.warning("%s_SHARE_WEIGHTS is set, but %s_CACHE_DIR is not: ignored", PREFIX, PREFIX)
        del chosen["share_weights"]
    return Options(**chosen)


def _creating_method(stock: Any) -> Any:
    @functools.wraps(stock)
    def create(self: Any, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        try:
            from ort_qdq_plugin.load.journey import SessionState, create_native_session
            from ort_qdq_plugin.ort.hook import CreateCall
        except Exception as error:
            log.warning("cannot be used: %s: %s", type(error).__name__, error)
            stock(self, providers, provider_options, disabled_optimizers)
            return
        state = self.__dict__.get("_ort_qdq_state")
        if state is None:
            state = self._ort_qdq_state = SessionState(_options)
        create_native_session(self, state, CreateCall(providers, provider_options, disabled_optimizers))

    create._ort_qdq_stock = stock  # type: ignore[attr-defined]  # for ort/hook.py, should it be imported only now
    return create


def _accuracy_level(text: str) -> int:
    level = int(text)
    if not is_accuracy_level(level):
        raise ValueError(text)
    return level


def _buffer(text: str) -> str:
    if text not in BUFFERS:
        raise ValueError(text)
    return text


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise ValueError(text)
    return text


def _threads(text: str) -> int:
    threads = int(text)
    if threads < 1:
        raise ValueError(text)
    return threads


def _byte_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _verify(text: str) -> str:
    if text not in VERIFY:
        raise ValueError(text)
    return text


def _flag(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise ValueError(text)
    return text.lower() in YES


def _log(level: str, path: str) -> None:
    """Log from this level on, to the end of a file, or to stderr. For programs that have no logging of their own.

    One line per session is "info", which is the level where only a file is given. Processes may share the file.
    """
    name = level.strip().lower() or ("info" if path else "")
    if not name:
        return
    if name not in _LEVELS:
        log.warning("%s_LOG is %r, must be one of %s: ignored", PREFIX, level, ", ".join(_LEVELS))
        return
    import logging

    logger = logging.getLogger(log.NAME)
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace") if path else logging.StreamHandler()
    except OSError as problem:
        log.warning("%s_LOG_FILE is %r: %s: ignored", PREFIX, path, problem)
        return
    handler.setFormatter(logging.Formatter("ort-qdq-plugin[%(process)d]: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(name.upper())
    logger.propagate = False
