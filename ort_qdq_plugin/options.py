"""Settings: what the caller asks of this package, and what the session's own options already say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BUFFERS",
    "FOLDER_KEY",
    "MAX_ACCURACY_LEVEL",
    "Options",
    "config_entry",
    "is_accuracy_level",
    "is_block_size",
    "memory_is_limited",
    "options_are_in_models",
    "thread_count",
]

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
BUFFERS = ("auto", "file", "memory")
MAX_ACCURACY_LEVEL = 4
_LEAST_PADDING, _DEFAULT = -1, 0
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256


@dataclass(frozen=True)
class Options:
    """How to load a model; the defaults do what ONNX Runtime's own fusion would.

    `accuracy_level`: MatMulNBits' attribute, 0 to 4; None takes ``session.qdq_matmulnbits_accuracy_level``, else 4.
    `block_size`: for weights without blocks, a power of two from 16 to 256, 0 for ONNX Runtime's default (32) or -1 for the
    one that pads K least; None takes ``session.qdq_matmulnbits_block_size``, else 0.
    `buffer`: where packed weights go: "file" (an unlinked spill file), "memory", or "auto" (a file unless they are small).
    `spill_dir`: directory of that file; None takes TMPDIR or the system's own. `threads` pack; None takes the session's
    intra-op threads, else all processors, or one where the process may not map much memory (``ulimit -v``). `strict`: raise
    where the default is to warn and leave it to stock ONNX Runtime.
    `progress`: called with (bytes moved, bytes to move) while packing, from the packing threads.

    Raises ValueError for values outside these.
    """

    accuracy_level: int | None = None
    block_size: int | None = None
    buffer: str = "auto"
    spill_dir: str | os.PathLike[str] | None = None
    threads: int | None = None
    strict: bool = False
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.buffer not in BUFFERS:
            raise ValueError(f"buffer is {self.buffer!r}, must be one of {', '.join(BUFFERS)}")
        if self.accuracy_level is not None and not is_accuracy_level(self.accuracy_level):
            raise ValueError(f"accuracy_level is {self.accuracy_level}, must be 0 to {MAX_ACCURACY_LEVEL}")
        if self.block_size is not None and not is_block_size(self.block_size):
            raise ValueError(f"block_size is {self.block_size}, must be a power of two from 16 to 256, 0 or -1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}, must be at least 1")


def is_accuracy_level(value: int) -> bool:
    """Whether MatMulNBits takes this accuracy_level."""
    return 0 <= value <= MAX_ACCURACY_LEVEL


def is_block_size(value: int) -> bool:
    """Whether ONNX Runtime takes this for ``session.qdq_matmulnbits_block_size``."""
    power_of_two = value > 0 and value & (value - 1) == 0
    return value in (_DEFAULT, _LEAST_PADDING) or (power_of_two and _MIN_BLOCK_SIZE <= value <= _MAX_BLOCK_SIZE)


def config_entry(session_options: Any | None, key: str) -> str | None:
    """The entry of an onnxruntime.SessionOptions, None where it is not set."""
    if session_options is None:
        return None
    try:
        value = session_options.get_session_config_entry(key)
    except RuntimeError:  # how it says that there is no such entry
        return None
    return value if isinstance(value, str) else None


def options_are_in_models() -> bool:
    """Whether ONNX Runtime has been told, in the environment, to take session options from a model's metadata."""
    return os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL") == "1"


def memory_is_limited() -> bool:
    """Whether this process may map only so much: each thread takes some of that for its stack and its heap, for good."""
    try:
        import resource
    except ImportError:  # not on this system
        return False
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)


def thread_count(options: Options, session_options: Any | None) -> int:
    """Threads to pack with."""
    if options.threads is not None:
        return options.threads
    if memory_is_limited():
        return 1
    intra_op = 0 if session_options is None else int(session_options.intra_op_num_threads)
    if intra_op > 0:
        return intra_op
    # Not the machine's processors but those this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
