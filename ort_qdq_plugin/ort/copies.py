"""Private copies of the caller's SessionOptions, and what ONNX Runtime has no call to read from them."""

from __future__ import annotations

import _thread
import functools
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.model.encoding import small_model
from ort_qdq_plugin.ort.extensions import extensions_are_installed
from ort_qdq_plugin.ort.keys import COMPILE_KEY, EXTENSIONS_DOMAIN, FOLDER_KEY, config_entry, options_are_in_models
from ort_qdq_plugin.ort.spare_copies import spare
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.system.forks import fork_lock

__all__ = [
    "added_providers",
    "copy_loses_something",
    "foreign_domains",
    "initialize_ort_once",
    "private_options",
    "supplies_initializers",
    "throw_away_session",
]

# Operator domains that ONNX Runtime's own builds register.
_SHIPPED_DOMAINS = {
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.microsoft.experimental", "com.microsoft.dml", "com.ms.internal.nhwc", "org.pytorch.aten",
}  # fmt: skip

_FATAL = 4  # OrtLoggingLevel
_COPIES_OF_A_LOAD = 5  # at the most: two probes, two models, and what `get_session_options` gives
_NO_SUCH_FILE = "External data path validation failed"


def private_options(session_options: Any | None, entries: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A copy of the caller's SessionOptions, with these config entries.

    Only ONNX Runtime can copy one: it does so for the options of a new session. Custom-op libraries, and providers that were
    added to the caller's, are lost.
    """
    if session_options is None:
        copy = onnxruntime.SessionOptions()
    elif session_options is spare.session_options:
        spare.copies = spare.copies or _copies(session_options, _COPIES_OF_A_LOAD)
        copy = spare.copies.pop()
    else:
        [copy] = _copies(session_options, 1)
    for key, value in entries.items():
        if config_entry(session_options, key) != value:
            copy.add_session_config_entry(key, value)
    return copy


def _copies(session_options: Any, count: int) -> list[Any]:
    session = throw_away_session(session_options, small_model())
    copies = [session.session_options for _ in range(count)]
    _discard_profile(session)
    return copies


def foreign_domains(domains: Iterable[str]) -> set[str]:
    """Those of these domains whose operators only a custom-op library of the caller's can have.

    The library of onnxruntime-extensions can be registered anew, if it is installed.
    """
    foreign = set(domains) - _SHIPPED_DOMAINS
    if EXTENSIONS_DOMAIN in foreign and extensions_are_installed():
        foreign.remove(EXTENSIONS_DOMAIN)
    return foreign


def copy_loses_something(session_options: Any | None, domains: Iterable[str]) -> bool:
    """Whether private_options would lose added providers, or the library that a model with these `foreign_domains` needs."""
    return session_options is not None and (any(domains) or bool(session_options.has_providers()))


def initialize_ort_once() -> None:
    """Have all made that ONNX Runtime makes once in a process, under locks, if another thread might fork the process."""
    if _thread._count():  # of threads beside the main one; `threading` need not be imported to ask
        _create_first_session()


@functools.cache
def _create_first_session() -> None:
    with fork_lock:
        supplies_initializers(onnxruntime.SessionOptions())


def added_providers(session_options: Any) -> tuple[str, ...]:
    """Names of the providers that a session would have which is created with these options and no list of providers.

    Only a session has them: one of a model without nodes. If a delegate selects devices
    (``set_provider_selection_policy_delegate``), it is called for that session too.

    Raises:
        LeaveToStock: The session would write a model, as the caller wants of his own.
    """
    if session_options.optimized_model_filepath or config_entry(session_options, COMPILE_KEY) == "1":
        raise LeaveToStock(StockReason.OPTIMIZED_MODEL)
    initialize_ort_once()
    session = throw_away_session(session_options, small_model())
    try:
        session.initialize_session([], [], set())
        return tuple(session.get_providers())
    finally:
        _discard_profile(session)


def _discard_profile(session: Any) -> None:
    """Remove the profile that a throw-away session has begun, if its options say so."""
    if session.session_options.enable_profiling:
        with suppress(OSError):
            os.unlink(session.end_profiling())


def supplies_initializers(session_options: Any | None) -> bool:
    """Whether the caller added initializers, or files of them, to these options: then a model's own are not what counts.

    ONNX Runtime has no call for that. But a session whose model wants a file that exists is created if there is no such
    table. Where that fails, a file that does not exist says why: without a table it fails in one way, and with one in
    another. (Single values added with ``add_initializer`` are not seen like this.)

    The file that does not exist would be enough. But ONNX Runtime's telemetry sends every error of a session, this one four
    times, and of one session in a hundred that it was created.
    """
    if session_options is None:
        return False
    options = private_options(session_options)
    options.enable_profiling, options.optimized_model_filepath = False, ""
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL
    # ONNX Runtime warns of an entry that is set anew.
    if config_entry(options, FOLDER_KEY) is None:
        folder, location = _existing_file()
        options.add_session_config_entry(FOLDER_KEY, folder)
        if not _problem_with_file(options, location):
            return False
    return _NO_SUCH_FILE not in _problem_with_file(options, "ort-qdq-plugin/no-such-file")


@functools.cache
def _existing_file() -> tuple[str, str]:
    """A folder, and the location in it of a file by whose name no caller adds one: this module's."""
    # ONNX Runtime refuses links out of the folder, and some installers make one of each file.
    file = os.path.realpath(__file__)
    folder = os.path.dirname(os.path.dirname(os.path.dirname(file)))
    return folder, os.path.relpath(file, folder).replace(os.sep, "/")


def _problem_with_file(options: Any, location: str) -> str:
    """Why no session is created with these options for a model that has a tensor in that file; "" if one is."""
    session = throw_away_session(options, small_model("Add", file=location, weight="ort-qdq-plugin/no-such-weight"))
    try:
        # While a C++ exception looks for who handles it, it holds a lock of the dynamic linker's. A child that was forked at
        # that moment would wait for it at its own first exception.
        with fork_lock:
            session.initialize_session(["CPUExecutionProvider"], [{}], set())
    except Exception as error:
        return str(error)
    return ""


def throw_away_session(session_options: Any, model: bytes) -> Any:
    """A native session of a model that ONNX Runtime has loaded, but not initialized. Raises what ONNX Runtime does."""
    # ONNX Runtime refuses to read the variable in one session of a process and not in another.
    return _native.InferenceSession(session_options, model, False, options_are_in_models())
