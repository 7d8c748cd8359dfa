"""The request of a load: a model, and how to load it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.wire import Copied
from ort_qdq_plugin.options import Options, is_accuracy_level, is_block_size
from ort_qdq_plugin.ort.keys import ACCURACY_KEY, BLOCK_SIZE_KEY, INT8_KEY, config_entry
from ort_qdq_plugin.ort.optimizers import why_qdq_is_not_fused
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import NamedTuple

__all__ = ["LoadRequest", "entries_of"]

_DEFAULT_ACCURACY_LEVEL = 4  # what ONNX Runtime's own fusion takes
_DEFAULT_BLOCK_SIZE = 0
# As Linux names the vector instructions of 64-bit ARM, and those of them for float16, which came with Armv8.2.
_NEON, _NEON_FLOAT16 = "asimd", "asimdhp"


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
    # Whether a session comes of it. What is only written to files need not be where ONNX Runtime finds it.
    creates_session: bool = True
    # Whether the session has execution providers beside the CPU's.
    has_other_providers: bool = False
    # Whether the cache is removed when this process ends, so that nothing in it has to reach the disk.
    temporary: bool = False
    # Whether an entry of the cache that is found counts as used by a load, and not as made ready for later ones.
    counts_as_use: bool = True
    # What a first look has found: something that may be fused, in this copy of the model.
    copied: Copied | None = None

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

    @property
    def entries(self) -> dict[str, str]:
        """Config entries that the session's options get, by key."""
        return entries_of(self.options, self.session_options)

    @property
    def int8_activations(self) -> bool:
        """Whether ONNX Runtime's integer kernels take int8 activations: by default they do on ARM."""
        return (config_entry(self.session_options, INT8_KEY) or str(int(host.is_arm()))) == "1"

    @property
    def float16(self) -> bool:
        """Whether ONNX Runtime's MatMulNBits runs in float16: on ARM it needs instructions that not every processor has.

        It does not ask for them (1.32.0): the process would end.
        """
        instructions = host.processor().split() if host.is_arm() else ()
        return _NEON not in instructions or _NEON_FLOAT16 in instructions

    def _setting(self, ours: int | None, key: str, default: int, allows: Callable[[int], bool]) -> int:
        if ours is not None:
            return ours
        text = config_entry(self.session_options, key)
        value = default if text is None else _number(text, allows)
        if value is not None:
            return value
        raise ModelError(f"session option {key} is {text!r}")

    @property
    def may_fuse(self) -> bool:
        """Whether the session's options let ONNX Runtime fuse QDQ nodes."""
        return not self.fusion_disabled_by

    @property
    def fusion_disabled_by(self) -> str:
        """Which of the session's options do not let ONNX Runtime fuse QDQ nodes; "" if they do."""
        return why_qdq_is_not_fused(self.session_options, self.disabled_optimizers)

    @property
    def may_be_unchanged(self) -> bool:
        """Whether the model may be handed over unchanged if nothing of it is fused: to the CPU provider alone so far."""
        return not (self.self_contained or self.portable or self.has_other_providers)

    @property
    def spill_dir(self) -> str | None:
        """Where spill files go; None for the system's own directory."""
        return None if self.options.spill_dir is None else os.fspath(self.options.spill_dir)

    @property
    def saves_model(self) -> bool:
        """Whether ONNX Runtime writes the optimized model to a file."""
        return self.session_options is not None and bool(self.session_options.optimized_model_filepath)

    @property
    def threads(self) -> int:
        """How many threads pack."""
        if self.options.threads is not None:
            return self.options.threads
        if host.memory_is_limited():
            return 1
        intra_op = 0 if self.session_options is None else int(self.session_options.intra_op_num_threads)
        return intra_op if intra_op > 0 else host.available_processors()


def entries_of(options: Options, session_options: Any | None) -> dict[str, str]:
    """Config entries that a session gets by these options, for the products that ONNX Runtime fuses.

    What it refuses in the session's own options is left there, for it to refuse.
    """
    values = {ACCURACY_KEY: (options.accuracy_level, is_accuracy_level), BLOCK_SIZE_KEY: (options.block_size, is_block_size)}
    entries = {}
    for key, (value, allows) in values.items():
        given = config_entry(session_options, key)
        if value is not None and (given is None or _number(given, allows) is not None):
            entries[key] = str(value)
    return entries


def _number(text: str, allows: Callable[[int], bool]) -> int | None:
    """The number that an entry is, if ONNX Runtime takes it."""
    with suppress(ValueError):
        # Python reads more as a number than ONNX Runtime does.
        if allows(value := int(text)) and text == str(value):
            return value
    return None
