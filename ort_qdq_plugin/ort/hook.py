"""The one place in onnxruntime.InferenceSession where this package comes in: the method that makes the native session.

The class keeps the arguments of its constructor in attributes (``_model_path``, ``_sess_options`` and so on). Only this
module reads them and, while the native session is made, replaces them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.ort.keys import CREATE_METHOD
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "KEYWORDS",
    "CreateCall",
    "available_providers",
    "constructor_arguments",
    "create_stock",
    "native_session",
    "set_reported_options",
    "substituted",
]


KEYWORDS = ("disabled_optimizers", "enable_fallback", "read_config_from_model")
"""What the constructor of InferenceSession looks for in its ``**kwargs``. It ignores all others (1.32.0)."""


class CreateCall(NamedTuple):
    """The arguments of the method that creates the native session of an InferenceSession."""

    providers: Any
    provider_options: Any
    disabled_optimizers: Any


# Bound at import. The method may have been replaced already by activation, which leaves the original one in an attribute.
_replaced_or_not = getattr(onnxruntime.InferenceSession, CREATE_METHOD)
_stock_method = getattr(_replaced_or_not, "_ort_qdq_stock", _replaced_or_not)


def create_stock(session: Any, call: CreateCall) -> None:
    """Create the native session as ONNX Runtime does."""
    _stock_method(session, *call)


def constructor_arguments(session: Any) -> tuple[str | bytes, Any | None]:
    """The model, as a path or as bytes, and the SessionOptions that an InferenceSession was given."""
    model = session._model_path if session._model_path is not None else session._model_bytes
    return model, session._sess_options


@contextmanager
def substituted(session: Any, model: bytes | str, session_options: Any) -> Iterator[None]:
    """While the block runs, the session has another model and other options than it was given."""
    path, data, options = session._model_path, session._model_bytes, session._sess_options
    is_path = isinstance(model, str)
    session._model_path, session._model_bytes = (model, None) if is_path else (None, model)
    session._sess_options = session_options
    try:
        yield
    finally:
        session._model_path, session._model_bytes, session._sess_options = path, data, options


def set_reported_options(session: Any, session_options: Any) -> None:
    """Let ``get_session_options`` give these."""
    session._sess_options = session_options


def native_session(session: Any) -> Any:
    """The C++ session behind an InferenceSession."""
    return session._sess


def available_providers() -> tuple[str, ...]:
    """The providers of this build of ONNX Runtime, and of libraries that were registered since."""
    return tuple(_native.get_available_providers())
