"""The methods of onnxruntime_genai that this package replaces, and the calls of a Config that it records.

Its classes are made in C++, and stay. ``Model.__init__`` is replaced, and so are the methods that change a Config. The
content of a Config cannot be read, but the recorded calls can be repeated on another one.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

from ort_qdq_plugin.errors import LeaveToStock, QdqPluginError
from ort_qdq_plugin.genai.config import Json, overlaid, parsed, with_providers
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "KNOWN",
    "Call",
    "UnknownGenAIError",
    "config_after",
    "create_stock_model",
    "genai_module",
    "new_config",
    "record_of",
    "replace_methods",
]

KNOWN = ("0.11", "0.18")
"""The first and the last version that this package was tested with. Newer ones are used where what it needs is there."""

_DATA_METHODS = ("add_model_data", "remove_model_data")

CreateModel = Callable[[Any, Any], None]


class UnknownGenAIError(QdqPluginError):
    """This version of onnxruntime-genai has not what this package replaces or calls."""


class Call(NamedTuple):
    """A call of a method of a Config, with its arguments."""

    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}

    @property
    def first(self) -> Any:
        """The first argument."""
        return [*self.args, *self.kwargs.values()][0]


class _Record(NamedTuple):
    """The model's folder that a Config was read from or prepared for, and the calls that have changed it since."""

    folder: str
    calls: list[Call]


_records: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_stock: dict[tuple[str, str], Any] = {}


def genai_module() -> ModuleType:
    """The module onnxruntime_genai.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    return importlib.import_module("onnxruntime_genai")


def replace_methods(module: ModuleType, create_model: CreateModel) -> None:
    """Replace the methods, once. `create_model` gets a Model and its folder or Config, and creates its native model.

    Raises:
        UnknownGenAIError: This version has something else in their place. Then nothing is replaced.
    """
    with _lock:
        if _stock:
            return
        problem = _problem_of(module)
        if problem is None:
            methods = _methods_of(module, create_model)
            try:
                for (owner, name), method in methods.items():
                    _stock[owner, name] = vars(getattr(module, owner))[name]
                    setattr(getattr(module, owner), name, method)
                if _calls_replaced_init(module.Model):
                    return
                problem = "Model(...) does not call Model.__init__"
            except (AttributeError, TypeError) as error:
                problem = f"its methods cannot be replaced ({error})"
            for (owner, name), method in _stock.items():
                with suppress(AttributeError, TypeError):
                    setattr(getattr(module, owner), name, method)
            _stock.clear()
    version = getattr(module, "__version__", "of unknown version")
    raise UnknownGenAIError(
        f"onnxruntime-genai {version} is used without ort-qdq-plugin, which knows {KNOWN[0]} to {KNOWN[1]}: {problem}"
    )


def create_stock_model(model: Any, folder_or_config: Any) -> None:
    """Create the native model as onnxruntime-genai does."""
    _stock["Model", "__init__"](model, folder_or_config)


def new_config(module: ModuleType, folder: str, calls: Sequence[Call], *, of: str, overlay: str = "") -> Any:
    """A Config that is read from a folder and changed by these calls, and then by an overlay.

    `record_of` knows it as one of the model's folder `of` after these calls.

    Raises:
        RuntimeError: onnxruntime-genai cannot read it.
    """
    config = module.Config(folder)
    for method, args, kwargs in calls:
        getattr(config, method)(*args, **kwargs)
    if overlay:
        config.overlay(overlay)
    _records[config] = _Record(os.path.abspath(of), list(calls))
    return config


def record_of(config: Any) -> tuple[str | None, tuple[Call, ...]]:
    """The model's folder of a Config, and the calls that have changed it since. None: that is not known."""
    try:
        record = _records.get(config)
    except TypeError:  # it is no Config: onnxruntime-genai has an error for that
        record = None
    return (None, ()) if record is None else (record.folder, tuple(record.calls))


def config_after(calls: Sequence[Call], config: Json) -> Json:
    """The content of genai_config.json after these calls, as far as it is about model files and session options.

    Raises:
        LeaveToStock: One of them gives a model as bytes, or names other files.
        ModelError: An overlay is no JSON object.
    """
    for call in calls:
        if call.method in _DATA_METHODS:
            raise LeaveToStock(StockReason.GENAI_MODEL_DATA)
        if call.method == "overlay":
            overlay = parsed(call.first, "an overlay")
            if '"filename"' in call.first:
                raise LeaveToStock(StockReason.GENAI_OVERLAY)
            config = overlaid(config, overlay)
        elif call.method == "clear_providers":
            config = with_providers(config, (), keep=False)
        elif call.method in ("append_provider", "set_provider_option"):
            config = with_providers(config, [str(call.first)], keep=True)
    return config


def _problem_of(module: ModuleType) -> str | None:
    """What is not there that this package needs."""
    version = getattr(module, "__version__", "").split(".")[:2]
    if all(map(str.isdecimal, version)) and list(map(int, version)) < list(map(int, KNOWN[0].split("."))):
        return "its configurations take no config entries of ONNX Runtime"
    for name in ("Config", "Model"):
        kind = getattr(module, name, None)
        if not isinstance(kind, type) or "__init__" not in vars(kind):
            return f"it has no class {name} with a constructor of its own"
        if not kind.__weakrefoffset__:
            return f"objects of its class {name} cannot be referred to weakly"
    return None if callable(getattr(module.Config, "overlay", None)) else "its configurations have no overlay"


def _methods_of(module: ModuleType, create_model: CreateModel) -> dict[tuple[str, str], Any]:
    """What is put in the place of which method of which class."""
    methods = {
        ("Config", "__init__"): _recording_init(module.Config.__init__),
        ("Model", "__init__"): _replacement_init(module.Model.__init__, create_model),
    }
    for name, method in vars(module.Config).items():
        # Names with an underscore are Python's or the binding's own.
        if callable(method) and not name.startswith("_") and not isinstance(method, (staticmethod, classmethod)):
            methods["Config", name] = _recording_call(name, method)
    return methods


class _Asked(Exception):
    """The answer to `_QUESTION`: this __init__ is called."""


_QUESTION = object()


def _calls_replaced_init(kind: Any) -> bool:
    """Whether a new object gets the replaced ``__init__``. Some bindings call their own, whatever the class has."""
    try:
        kind(_QUESTION)
    except _Asked:
        return True
    except Exception:
        # What their own says of such an argument.
        return False
    return False


def _recording_init(stock: Any) -> Any:
    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        given = [*args, *kwargs.values()]
        if len(given) == 1 and isinstance(given[0], (bytes, str)):
            _records[self] = _Record(os.fsdecode(given[0]), [])

    return init


def _recording_call(name: str, stock: Any) -> Any:
    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = stock(self, *args, **kwargs)
        record = _records.get(self)
        if record is not None:
            record.calls.append(Call(name, args, kwargs))
        return result

    return call


def _replacement_init(stock: Any, create_model: CreateModel) -> Any:
    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        if len(given) != 1:
            stock(self, *args, **kwargs)
        elif given[0] is _QUESTION:
            raise _Asked
        else:
            create_model(self, given[0])

    return init
