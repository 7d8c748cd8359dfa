"""The options of this package: what they mean, what they may be, and the environment variables that give them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, get_args

from ort_qdq_plugin import log
from ort_qdq_plugin.report.values import ByFields
from ort_qdq_plugin.system.environment import NO, PREFIX, YES

__all__ = [
    "Buffer",
    "Once",
    "Options",
    "Progress",
    "Verify",
    "is_accuracy_level",
    "is_block_size",
    "options_from_environment",
]

Buffer = Literal["auto", "file", "memory"]
Once = Literal["auto", "never", "always"]
Verify = Literal["stat", "content"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after each step, on the thread that made it."""

_MAX_ACCURACY_LEVEL = 4
_LEAST_PADDING, _DEFAULT = -1, 0
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256


class Options(ByFields):
    """How to load a model. The defaults do what ONNX Runtime's own fusion would, `dequantize_once` apart.

    Attributes:
        accuracy_level: MatMulNBits' attribute, 0 (activations stay float) to 4 (they are rounded to 8 bits: mostly faster).
            At 4, with blocks of 32 or more, a NaN in the input vanishes in the kernel, which is that of ONNX Runtime's own
            fusion, and an infinity makes NaN. None takes ``session.qdq_matmulnbits_accuracy_level`` of the session's
            options, else 4. It holds for all products of the session, also for those that ONNX Runtime fuses itself; so does
            `block_size`.
        block_size: For weights without blocks: a power of two from 16 to 256, 0 for ONNX Runtime's default of 32 (or 256 for
            8 bits, where that is faster and activations are not rounded), or -1 for the one that pads K least. None
            takes ``session.qdq_matmulnbits_block_size``, else 0.
        buffer: Where packed weights go: "file" (a temporary file without a name), "memory", or "auto" (a file, unless they
            are below 1 MiB).
        spill_dir: The directory of that file. None takes TMPDIR if it is set, else the system's own.
        threads: How many threads pack. None takes the session's intra-op threads, else all processors; or one if the process
            may not map much memory (``ulimit -v``).
        strict: Raise an error where the default is to warn and to leave the model to stock ONNX Runtime.
        cache_dir: A directory in which packed models are kept, so that later loads need not pack. None: there is none.
        cache_max_bytes: When a model is added, those that were not used for the longest time are removed until all together
            have at most this size. None: no limit.
        share_weights: Keep ONNX Runtime's pre-packed weights in the cache as well, so that processes which load the same
            model share one copy of all weights. Needs `cache_dir` or `prepared`.
        verify: When a cached model may be used. "stat": the files that it was made of still have the same size, inode and
            time of their last change. "content": their content and that of the cached files is the same too, byte for byte.
        dequantize_once: Weights that no fused operator takes (of Conv, LSTM, ...) can be dequantized once, when the model is
            loaded, where stock ONNX Runtime does it on every run. Their values in float take memory. "auto": those that
            together take at most as many bytes as the model stores, or 128 MiB if that is more, the smallest first.
            "never": none. "always": all.
        progress: Called with (bytes moved, bytes to move) while packing, from the threads that pack.
        prepared: A directory of models that were prepared elsewhere (``ort-qdq prepare``, ``warm(portable=True)``). It is
            searched before `cache_dir`, and never written to. None: there is none.

    Raises:
        ValueError: A value is not one of these.
    """

    accuracy_level: int | None = None
    block_size: int | None = None
    buffer: Buffer = "auto"
    spill_dir: str | os.PathLike[str] | None = None
    threads: int | None = None
    strict: bool = False
    cache_dir: str | os.PathLike[str] | None = None
    cache_max_bytes: int | None = None
    share_weights: bool = False
    verify: Verify = "stat"
    dequantize_once: Once = "auto"
    progress: Progress | None = None
    prepared: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name, (allowed, allows, _) in _RULES.items():
            value = getattr(self, name)
            if allows is not None and value is not vars(Options)[name] and not allows(value):
                raise ValueError(f"{name} is {value!r}, must be {allowed}")
        if self.share_weights and self.cache_dir is None and self.prepared is None:
            raise ValueError("share_weights is True, but there is no cache_dir")


def is_accuracy_level(value: int) -> bool:
    """Whether MatMulNBits takes this accuracy_level."""
    return 0 <= value <= _MAX_ACCURACY_LEVEL


def is_block_size(value: int) -> bool:
    """Whether ONNX Runtime takes this for ``session.qdq_matmulnbits_block_size``."""
    power_of_two = value > 0 and value & (value - 1) == 0
    return value in (_DEFAULT, _LEAST_PADDING) or (power_of_two and _MIN_BLOCK_SIZE <= value <= _MAX_BLOCK_SIZE)


def _flag(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise ValueError(text)
    return text.lower() in YES


def _existing(text: str) -> str:
    if not os.path.isdir(text):
        raise ValueError(text)
    return text


def _one_of(choices: object) -> _Rule:
    values = get_args(choices)
    return f"one of {', '.join(values)}", lambda value: value in values, str


# What an option may be, apart from its default: in words, which follow "must be"; whether a value is allowed (None: any is);
# and a parser of its environment variable, which may raise ValueError (None: it has no variable).
_Rule = tuple[str, Callable[[Any], bool] | None, Callable[[str], Any] | None]
_RULES: dict[str, _Rule] = {
    "accuracy_level": (f"a whole number from 0 to {_MAX_ACCURACY_LEVEL}", is_accuracy_level, int),
    "block_size": ("a power of two from 16 to 256, 0 or -1", is_block_size, None),
    "buffer": _one_of(Buffer),
    "spill_dir": ("an existing directory", None, _existing),
    "threads": ("a whole number of at least 1", lambda value: value >= 1, int),
    "strict": ("true or false", None, _flag),
    "cache_dir": ("a directory", None, str),
    "prepared": ("an existing directory", None, _existing),
    "cache_max_bytes": ("a whole number of bytes, at least 0", lambda value: value >= 0, int),
    "verify": _one_of(Verify),
    "dequantize_once": _one_of(Once),
    "share_weights": ("true or false", None, _flag),
}


def options_from_environment(environment: Mapping[str, str]) -> Options:
    """The Options that the ``ORT_QDQ_PLUGIN_*`` variables give. A value that is not allowed is ignored, with a warning."""
    given: dict[str, Any] = {}
    for name, (allowed, allows, parse) in _RULES.items():
        variable = f"{PREFIX}_{name.upper()}"
        text = environment.get(variable, "").strip()
        if text and parse is not None:
            with suppress(ValueError):
                value = parse(text)
                if allows is None or allows(value):
                    given[name] = value
            if name not in given:
                log.warning("%s is %r, must be %s: ignored", variable, text, allowed)
    if given.get("share_weights") and not given.keys() & {"cache_dir", "prepared"}:
        log.warning("%s_SHARE_WEIGHTS is set, but %s_CACHE_DIR is not: ignored", PREFIX, PREFIX)
        del given["share_weights"]
    return Options(**given)
