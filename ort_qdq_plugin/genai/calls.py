"""The places in onnxruntime_genai where this package comes in: how models are created, and what configurations are told.

Its classes are pybind11's, and stay. Methods of theirs are replaced: ``Model.__init__``, and those of Config that change
one, so that they can be repeated on another configuration. An ``onnxruntime_genai.Config`` does not tell what it holds.
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

__all__ = ["Call", "create_stock_model", "effect_of", "genai", "new_config", "record_of", "replace_methods"]

_DATA_METHODS = ("add_model_data", "remove_model_data")

CreateModel = Callable[[Any, Any], None]


class Call(NamedTuple):
    """A method of a configuration that was called, and what it was given."""

    method: str
    args: tuple[Any, ...]


class _Record(NamedTuple):
    """The folder that a configuration was read from, and what it was told since."""

    folder: str
    calls: list[Call]


_records: weakref.WeakKeyDictionary[Any, _Record] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_stock: dict[tuple[str, str], Any] = {}


def genai() -> ModuleType:
    """The module onnxruntime_genai.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    return importlib.import_module("onnxruntime_genai")


def replace_methods(module: ModuleType, create_model: CreateModel) -> None:
    """Replace the methods, once.

    Args:
        module: onnxruntime_genai.
        create_model: Creates the native model of a Model from a folder or a Config; it may call `create_stock_model`.
    """
    with _lock:
        if _stock:
            return
        for name, method in vars(module.Config).items():
            # Static ones have no configuration yet; what begins with an underscore is Python's or pybind11's own.
            if callable(method) and (name == "__init__" or not name.startswith("_")) and _is_of_instances(method):
                _stock["Config", name] = method
        _stock["Model", "__init__"] = module.Model.__init__
        for (_, name), method in _stock.items():
            if name != "__init__":
                setattr(module.Config, name, _recording(name, method))
        module.Config.__init__ = _beginning(_stock["Config", "__init__"])
        module.Model.__init__ = _creating(_stock["Model", "__init__"], create_model)


def create_stock_model(model: Any, folder_or_config: Any) -> None:
    """Create the native model as onnxruntime-genai does."""
    _stock["Model", "__init__"](model, folder_or_config)


def new_config(module: ModuleType, folder: str, calls: Sequence[Call]) -> Any:
    """A Config that is read from a folder, then told all this.

    Raises:
        RuntimeError: onnxruntime-genai cannot read it.
    """
    config = module.Config(folder)
    for call in calls:
        getattr(config, call.method)(*call.args)
    return config


def record_of(config: Any) -> tuple[str | None, tuple[Call, ...]]:
    """The folder that a Config was read from, and what it was told since; None for one that is not known."""
    try:
        record = _records.get(config)
    except TypeError:  # no Config at all: onnxruntime-genai will say so
        record = None
    return (None, ()) if record is None else (record.folder, tuple(record.calls))


def effect_of(calls: Sequence[Call], config: Json) -> Json:
    """A configuration after all these calls, as far as they change what sessions are created for and how.

    Raises:
        LeaveToStock: One of them gives models another way than by files, or other files.
        ModelError: An overlay is no JSON object.
    """
    for call in calls:
        if call.method in _DATA_METHODS:
            raise LeaveToStock("its models were given as bytes")
        if call.method == "overlay":
            overlay = parsed(call.args[0], "an overlay")
            if '"filename"' in call.args[0]:
                raise LeaveToStock("an overlay changes its files")
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


def _is_of_instances(method: Any) -> bool:
    # pybind11 has functions of a class in a type of its own for those of instances.
    return type(method).__name__ == "instancemethod"


def _beginning(stock: Any) -> Any:
    @functools.wraps(stock)
    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        given = [*args, *kwargs.values()]
        if len(given) == 1 and isinstance(given[0], str):
            _records[self] = _Record(given[0], [])

    return begin


def _recording(name: str, stock: Any) -> Any:
    @functools.wraps(stock)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = stock(self, *args, **kwargs)
        record = _records.get(self)
        if record is not None:
            if kwargs:
                # Not to be repeated by position.
                del _records[self]
            else:
                record.calls.append(Call(name, args))
        return result

    return call


def _creating(stock: Any, create_model: CreateModel) -> Any:
    @functools.wraps(stock)
    def create(self: Any, *args: Any, **kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        if len(given) != 1:
            stock(self, *args, **kwargs)
        else:
            create_model(self, given[0])

    return create
