"""Model packages: which model a session of a package's component has, and with which options (ONNX Runtime 1.32.0).

``ModelPackageComponentContext.create_session`` makes the native session past ``InferenceSession.__init__``. What the session
has comes from the variant's ``executor_info["ort"]``: a ``model_file``, and ``session_options``, all of them config entries.
Those that are paths are relative to the variant's folder. Options of the caller's have only these of them, where they have
none themselves. The session is one that cannot be created anew, with other providers for instance.
"""

from __future__ import annotations

import weakref
from typing import Any

import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.ort.hook import native_session
from ort_qdq_plugin.ort.keys import FOLDER_KEY, config_entry
from ort_qdq_plugin.ort.providers import CPU
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import NamedTuple

__all__ = ["PackagedModel", "model_of", "package_methods", "remember", "session_from"]

_PATHS = (FOLDER_KEY, "ep.context_file_path")

# Each selected component, and its package's context.
_contexts: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


class PackagedModel(NamedTuple):
    """What a session of a component is created from."""

    path: str
    session_options: Any


def package_methods() -> tuple[tuple[type, str], ...]:
    """Class and name of the method that selects a component, and of the one that creates its sessions; () before 1.32."""
    if not hasattr(_native, "ModelPackageComponentContext"):
        return ()
    return (_native.ModelPackageContext, "select_component"), (_native.ModelPackageComponentContext, "create_session")


def remember(component: Any, context: Any) -> None:
    """Note of which package a component was selected."""
    _contexts[component] = context


def model_of(component: Any, session_options: Any | None) -> PackagedModel | None:
    """What InferenceSession needs to be what the component's `create_session` would make.

    None if that cannot be said: the component was selected before this package was active, or its variant's own options are
    for another execution provider than the CPU's, or options that cannot be copied lack some of its paths.
    """
    context = _contexts.get(component)
    if context is None or not isinstance(session_options, onnxruntime.SessionOptions | None):
        return None
    name, folder = component.get_selected_variant_name(), component.get_selected_variant_folder_path()
    package = _native.ModelPackage.open(context.resolve_string_ref("."))
    try:
        variants = [variant for one in package.get_info()["components"] for variant in one["variants"]]
    finally:
        package.close()
    with fork_lock:
        import json

        from ort_qdq_plugin.ort.copies import private_options
    (variant,) = (one for one in variants if (one["name"], one["variant_directory"]) == (name, folder))
    info = json.loads(variant["executor_info"]["ort"])
    entries = dict(info.get("session_options") or {})
    for key in entries.keys() & _PATHS:
        entries[key] = context.resolve_string_ref(entries[key], folder)
    path = context.resolve_string_ref(info["model_file"], folder)
    if session_options is None:
        if variant["ep"] != CPU or info.get("provider_options"):
            return None
        return PackagedModel(path, private_options(None, entries))
    missing = {key: entries[key] for key in entries.keys() & _PATHS if config_entry(session_options, key) is None}
    if missing and session_options.has_providers():
        return None
    return PackagedModel(path, private_options(session_options, missing) if missing else session_options)


def session_from(made: Any) -> Any:
    """A session as the component's `create_session` gives it, with the native session of one that was made from a path."""
    session = onnxruntime.InferenceSession._from_initialized_c_session(native_session(made))
    session._sess_options = made._sess_options
    return session
