"""Which entry of the cache a load looks for. This imports little: it is asked before anything is known of the model."""

from __future__ import annotations

import os

import onnxruntime

import ort_qdq_plugin
from ort_qdq_plugin.cache.key import FORMAT, Identity, entry_key, kind_of_processor
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.ort.keys import FOLDER_KEY, FORMAT_KEY, INT8_KEY, config_entry, options_are_in_models
from ort_qdq_plugin.system.platform import files, host

__all__ = ["key_of", "portable_place"]


def key_of(request: LoadRequest) -> str:
    """The name of a model's entry.

    Raises:
        ModelError: A session option is not allowed.
        OSError: There is no such model.
    """
    model, folder = _path_of(request), config_entry(request.session_options, FOLDER_KEY) or ""
    place = (
        *_settings(request),
        # Entries of other users are not used.
        files.user(),
        os.path.realpath(model),
        # A model that is a link has its external data beside the link.
        os.path.realpath(os.path.dirname(model)),
        folder and os.path.realpath(folder),
        request.self_contained,
        # Pre-packed weights fit one kind of processor.
        kind_of_processor() if request.options.share_weights else "",
    )
    return entry_key(place, Identity.of(os.stat(model)))


def portable_place(request: LoadRequest) -> tuple[object, ...]:
    """What the portable entries have in common among which a model's one is, if there is one. Errors as of `key_of`."""
    model = _path_of(request)
    return (*_settings(request), os.path.basename(model), os.stat(model).st_size)


def _path_of(request: LoadRequest) -> str:
    return os.path.abspath(os.fsdecode(request.model))


def _settings(request: LoadRequest) -> tuple[object, ...]:
    """What decides what is in an entry, apart from the model."""
    return (
        FORMAT,
        ort_qdq_plugin.__version__,
        onnxruntime.__version__,
        request.accuracy_level,
        request.block_size,
        request.may_fuse,
        config_entry(request.session_options, INT8_KEY) or "",
        host.is_arm(),
        request.float16,
        request.options.dequantize_once,
        # Some models are left to stock because of these.
        config_entry(request.session_options, FORMAT_KEY) or "",
        options_are_in_models(),
    )
