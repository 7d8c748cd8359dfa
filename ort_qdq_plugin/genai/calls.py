"""The methods of onnxruntime_genai that this package replaces, and the calls of a Config that it records.

Its classes are pybind11's, and stay. ``Model.__init__`` is replaced, and so are the methods that change a Config. The
content of a Config cannot be read, but the recorded calls can be repeated on another one.
"""

from __future__ import annotations

import functools
import importlib
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.genai.config import Json, merged, parsed
from ort_qdq_plugin.report import StockReason

__all__ = ["Call", "config_after", "create_stock_model", "genai_module", "new_config", "record_of", "replace_methods"]

_DATA_METHODS = ("add_model_data", "remove_model_data")

CreateModel = Callable[[Any, Any], None]


class Call(NamedTuple):
    """A call of a method of a Config, with its positional arguments."""

    method: str
    args: tuple[Any, ...]


class _Record(NamedTuple):
    """The folder that a Config was read from, and the calls that have changed it since."""

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
    """Replace the methods, once. `create_model` gets a Model and its folder or Config, and creates its native model."""
    with _lock:
        if _stock:
            return
        for name, method in vars(module.Config).items():
            # Names with an underscore are Python's or pybind11's own.
            if callable(method) and (name == "__init__" or not name.startswith("_")) and _takes_instance(method):
                _stock["Config", name] = method
        _stock["Model", "__init__"] = module.Model.__init__
        for (_, name), method in _stock.items():
            if name != "__init__":
                setattr(module.Config, name, _recording_call(name, method))
        module.Config.__init__ = _recording_init(_stock["Config", "__init__"])
        module.Model.__init__ = _replacement_init(_stock["Model", "__init__"], create_model)


def create_stock_model(model: Any, folder_or_config: Any) -> None:
    """Create the native model as onnxruntime-genai does."""
    _stock["Model", "__init__"](model, folder_or_config)


def new_config(module: ModuleType, folder: str, calls: Sequence[Call]) -> Any:
    """A Config that is read from a folder and changed by these calls.

    Raises:
        RuntimeError: onnxruntime-genai cannot read it.
    """
    config = module.Config(folder)
    for method, args in calls:
        getattr(config, method)(*args)
    return config


def record_of(config: Any) -> tuple[str | None, tuple[Call, ...]]:
    """The folder that a Config was read from, and the calls that have changed it since. None: that is not known."""
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
            overlay = parsed(call.args[0], "an overlay")
            if '"filename"' in call.args[0]:
                raise LeaveToStock(StockReason.GENAI_OVERLAY)
            config = merged(config, overlay)
        elif call.method == "clear_providers":
            config = _with_providers(config, [])
        elif call.method in ("append_provider", "set_provider_option"):
            provider: Json = {str(call.args[0]): {}}
            config = merged(config, {"model": {"decoder": {"session_options": {"provider_options": [provider]}}}})
    return config


def _with_providers(config: Json, providers: list[Json]) -> Json:
    model = config.get("model") or {}
    decoder = model.get("decoder") or {}
    options = {**(decoder.get("session_options") or {}), "provider_options": providers}
    return {**config, "model": {**model, "decoder": {**decoder, "session_options": options}}}


def _takes_instance(method: Any) -> bool:
    """Whether it is no static method. pybind11 has a type of its own for the others."""
    return type(method).__name__ == "instancemethod"


def _recording_init(stock: Any) -> Any:
    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        given = [*args, *kwargs.values()]
        if len(given) == 1 and isinstance(given[0], str):
            _records[self] = _Record(given[0], [])

    return init


def _recording_call(name: str, stock: Any) -> Any:
    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = stock(self, *args, **kwargs)
        record = _records.get(self)
        if record is not None:
            if kwargs:
                # A call cannot be repeated with them; so the Config is not known any more.
                del _records[self]
            else:
                record.calls.append(Call(name, args))
        return result

    return call


def _replacement_init(stock: Any, create_model: CreateModel) -> Any:
    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        if len(given) != 1:
            stock(self, *args, **kwargs)
        else:
            create_model(self, given[0])

    return init
