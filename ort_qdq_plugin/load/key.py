"""Which entry of the cache a load looks for. This imports little: it is asked before anything is known of the model."""

from __future__ import annotations

import os

import onnxruntime

import ort_qdq_plugin
from ort_qdq_plugin.cache.key import FORMAT, Identity, entry_key
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.ort.keys import FOLDER_KEY, FORMAT_KEY, config_entry, options_are_in_models
from ort_qdq_plugin.system.platform import files, host

__all__ = ["key_of"]


def key_of(request: LoadRequest) -> str:
    """The name of a model's entry.

    Raises:
        ModelError: A session option is not allowed.
        OSError: There is no such model.
    """
    model, folder = os.path.abspath(os.fsdecode(request.model)), config_entry(request.session_options, FOLDER_KEY) or ""
    place = (
        FORMAT,
        ort_qdq_plugin.__version__,
        onnxruntime.__version__,
        # Entries of other users are not used.
        files.user(),
        os.path.realpath(model),
        # A model that is a link has its external data beside the link.
        os.path.realpath(os.path.dirname(model)),
        folder and os.path.realpath(folder),
        request.accuracy_level,
        request.block_size,
        request.may_fuse,
        request.self_contained,
        # Some models are left to stock because of these.
        config_entry(request.session_options, FORMAT_KEY) or "",
        options_are_in_models(),
        # Pre-packed weights fit one kind of processor.
        host.processor() if request.options.share_weights else "",
    )
    return entry_key(place, Identity.of(os.stat(model)))
