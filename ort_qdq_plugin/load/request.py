"""The request of a load: a model, and how to load it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import onnxruntime

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.options import Options, is_accuracy_level, is_block_size
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, BLOCK_SIZE_KEY, NO_QDQ_KEY, config_entry
from ort_qdq_plugin.system.platform import host

__all__ = ["LoadRequest"]

_DEFAULT_ACCURACY_LEVEL = 4  # what ONNX Runtime's own fusion takes
_DEFAULT_BLOCK_SIZE = 0
_QDQ_OPTIMIZER = "QDQSelectorActionTransformer"


class LoadRequest(NamedTuple):
    """What is loaded, and how."""

    model: str | bytes  # its path, or the model itself as bytes
    session_options: Any | None  # the caller's onnxruntime.SessionOptions. They are read, never changed
    options: Options  # the caller's options for this package
    disabled_optimizers: frozenset[str] = frozenset()  # names of the optimizers of ONNX Runtime that do not run
    # Whether the cache's entry must contain all files that its model refers to, to be opened by path.
    self_contained: bool = False
    # Whether the cache's entry is made for other machines.
    portable: bool = False
    # Whether the cache is removed when this process ends, so that nothing in it has to reach the disk.
    temporary: bool = False

    @property
    def accuracy_level(self) -> int:
        """The accuracy level of fused nodes.

        Raises:
            ModelError: The session's own entry is not allowed; ONNX Runtime refuses it.
        """
        return self._setting(self.options.accuracy_level, ACCURACY_KEY, _DEFAULT_ACCURACY_LEVEL, is_accuracy_level)

    @property
    def block_size(self) -> int:
        """The block size for weights without blocks.

        Raises:
            ModelError: The session's own entry is not allowed; ONNX Runtime refuses it.
        """
        return self._setting(self.options.block_size, BLOCK_SIZE_KEY, _DEFAULT_BLOCK_SIZE, is_block_size)

    def _setting(self, ours: int | None, key: str, default: int, allows: Callable[[int], bool]) -> int:
        if ours is not None:
            return ours
        text = config_entry(self.session_options, key)
        if not text:
            return default
        with suppress(ValueError):
            if allows(value := int(text)):
                return value
        raise ModelError(f"session option {key} is {text!r}")

    @property
    def may_fuse(self) -> bool:
        """Whether the session's options let ONNX Runtime fuse QDQ nodes."""
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options = self.session_options
        below = options is not None and options.graph_optimization_level.value < level.value
        return not (below or config_entry(options, NO_QDQ_KEY) == "1" or _QDQ_OPTIMIZER in self.disabled_optimizers)

    @property
    def threads(self) -> int:
        """How many threads pack."""
        if self.options.threads is not None:
            return self.options.threads
        if host.memory_is_limited():
            return 1
        intra_op = 0 if self.session_options is None else int(self.session_options.intra_op_num_threads)
        return intra_op if intra_op > 0 else host.available_processors()
