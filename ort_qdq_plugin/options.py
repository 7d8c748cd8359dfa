"""Settings: what the caller asks of this package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["BUFFERS", "MAX_ACCURACY_LEVEL", "VERIFY", "Options", "is_accuracy_level", "is_block_size"]

BUFFERS = ("auto", "file", "memory")
VERIFY = ("stat", "content")
MAX_ACCURACY_LEVEL = 4
_LEAST_PADDING, _DEFAULT = -1, 0
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256


@dataclass(frozen=True)
class Options:
    """How to load a model. The defaults do what ONNX Runtime's own fusion would.

    Attributes:
        accuracy_level: MatMulNBits' attribute, 0 (activations stay float) to 4 (they are rounded to 8 bits: mostly faster).
            None takes ``session.qdq_matmulnbits_accuracy_level`` of the session's options, else 4.
        block_size: For weights without blocks: a power of two from 16 to 256, 0 for ONNX Runtime's default of 32, or -1 for
            the one that pads K least. None takes ``session.qdq_matmulnbits_block_size``, else 0.
        buffer: Where packed weights go: "file" (a temporary file without a name), "memory", or "auto" (a file, unless they
            are below 1 MiB).
        spill_dir: The directory of that file. None takes TMPDIR if it is set, else the system's own.
        threads: How many threads pack. None takes the session's intra-op threads, else all processors; or one if the process
            may not map much memory (``ulimit -v``).
        strict: Raise an error where the default is to warn and to leave the model to stock ONNX Runtime.
        cache_dir: A directory in which packed models are kept, so that later loads need not pack. None: there is none.
        cache_max_bytes: When a model is added, those that were not used for the longest time are removed until all together
            have at most so many bytes. None: no limit.
        share_weights: Keep ONNX Runtime's pre-packed weights in the cache as well, so that processes which load the same
            model share one copy of all weights. Needs `cache_dir`.
        verify: "stat": a cached model is used if the files that it was made of have the same size, times and inode as then.
            "content": if, beside that, everything in them and in the cache is still the same, byte for byte.
        progress: Called with (bytes moved, bytes to move) while packing, from the threads that pack.

    Raises:
        ValueError: A value is outside these.
    """

    accuracy_level: int | None = None
    block_size: int | None = None
    buffer: str = "auto"
    spill_dir: str | os.PathLike[str] | None = None
    threads: int | None = None
    strict: bool = False
    cache_dir: str | os.PathLike[str] | None = None
    cache_max_bytes: int | None = None
    share_weights: bool = False
    verify: str = "stat"
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
        if self.cache_max_bytes is not None and self.cache_max_bytes < 0:
            raise ValueError(f"cache_max_bytes is {self.cache_max_bytes}, must be at least 0")
        if self.share_weights and self.cache_dir is None:
            raise ValueError("share_weights is True, but there is no cache_dir")
        if self.verify not in VERIFY:
            raise ValueError(f"verify is {self.verify!r}, must be one of {', '.join(VERIFY)}")


def is_accuracy_level(value: int) -> bool:
    """Whether MatMulNBits takes this accuracy_level."""
    return 0 <= value <= MAX_ACCURACY_LEVEL


def is_block_size(value: int) -> bool:
    """Whether ONNX Runtime takes this for ``session.qdq_matmulnbits_block_size``."""
    power_of_two = value > 0 and value & (value - 1) == 0
    return value in (_DEFAULT, _LEAST_PADDING) or (power_of_two and _MIN_BLOCK_SIZE <= value <= _MAX_BLOCK_SIZE)
