"""The options of this package: what they mean, what they may be, and the environment variables that give them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from ort_qdq_plugin import log
from ort_qdq_plugin.system.environment import LOG, LOG_FILE, NO, PREFIX, RUN_LOG_FILE, YES
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import ByFields

__all__ = [
    "NAMES",
    "Buffer",
    "Once",
    "Options",
    "Progress",
    "Verify",
    "check_flag",
    "is_accuracy_level",
    "is_block_size",
    "nearest",
    "options_from_environment",
    "shown",
]

Buffer = Literal["auto", "file", "memory"]
Once = Literal["auto", "never", "always"]
Verify = Literal["stat", "content"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after each step, on the thread that made it."""

_NEAR = 0.7  # difflib's ratio of a misspelt name: "accuracy" is as near to "accuracy_level", "cache" to "cache_dir"
_MAX_ACCURACY_LEVEL = 4
_LEAST_PADDING, _DEFAULT = -1, 0
_MIN_BLOCK_SIZE, _MAX_BLOCK_SIZE = 16, 256

_BAR = "bar"
_LONGEST_SHOWN = 60  # characters of a value in a message


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
        spill_dir: The directory of that file. None takes TMPDIR if it is set, else ``/var/tmp`` or the system's own.
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
        progress: Called with (bytes done, bytes in all) while packing, from the threads that pack, and then while another
            process pre-packs. If it has a method ``stage``, that is called with the name of each stage that begins
            (`Report.seconds` has them). "bar" shows a line on standard error where that is a terminal and the load takes
            more than half a second.
        prepared: A directory of models that were prepared elsewhere (``ort-qdq prepare``, ``warm(portable=True)``). It is
            searched before `cache_dir`, and never written to. None: there is none.

    Whole numbers may be NumPy's, and are kept as ``int``. In directories, ``~`` and ``~user`` at the start are home
    directories.

    Raises:
        TypeError: A value is of another type, or there is no such option.
        ValueError: A value is of the right type, but not one of these.
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
    progress: Progress | Literal["bar"] | None = None
    prepared: str | os.PathLike[str] | None = None

    def _unknown(self, name: str) -> str:
        meant = nearest(name, self._types)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(sorted(self._types))}"
        return f"{type(self).__name__}() has no option {name}: {hint}"

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            given = getattr(self, name)
            if given is not vars(Options)[name]:
                vars(self)[name] = rule.checked(name, given)
        if self.share_weights and self.cache_dir is None and self.prepared is None:
            raise ValueError("share_weights is True, but there is no cache_dir, and no prepared: give one of them, too")


def is_accuracy_level(value: int) -> bool:
    """Whether MatMulNBits takes this accuracy_level."""
    return 0 <= value <= _MAX_ACCURACY_LEVEL


def is_block_size(value: int) -> bool:
    """Whether ONNX Runtime takes this for ``session.qdq_matmulnbits_block_size``."""
    power_of_two = value > 0 and value & (value - 1) == 0
    return value in (_DEFAULT, _LEAST_PADDING) or (power_of_two and _MIN_BLOCK_SIZE <= value <= _MAX_BLOCK_SIZE)


class _Rule(ByFields):
    """What an option may be, apart from its default."""

    allowed: str  # in words, which follow "must be"
    kept: Callable[[Any], Any]  # the value as it is kept; it raises TypeError for one of another type
    # Of the text of the option's variable, what `kept` is asked of; it may raise ValueError. None: it has no variable.
    parse: Callable[[str], Any] | None
    allows: Callable[[Any], bool] = lambda _: True  # whether a value that is kept is allowed

    def checked(self, name: str, given: Any) -> Any:
        """The value as it is kept. Errors as of Options."""
        try:
            value = self.kept(given)
        except TypeError:
            kind = type(given).__name__
            raise TypeError(f"{name} is {shown(given)} ({kind}), must be {self.allowed}") from None
        if not self.allows(value):
            raise ValueError(f"{name} is {shown(given)}, must be {self.allowed}")
        return value


def shown(value: object) -> str:
    """A value in a message, on one line."""
    try:
        text = log.printable(repr(value))
    except Exception:  # its own code's
        return "a value that cannot be shown"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _flag(value: Any) -> bool:
    # NumPy's has the name "bool" too, and "bool_" before NumPy 2.
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _directory(value: Any) -> Any:
    path = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError
    return os.path.expanduser(path) if path.startswith("~") else value


def _can_be_directory(value: Any) -> bool:
    path = os.fspath(value)
    # A ~ that is still there is nobody's home.
    return path != "" and "\0" not in path and not path.startswith("~")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _progress(value: Any) -> Any:
    if not (value is None or isinstance(value, str) or callable(value)):
        raise TypeError
    return value


def _is_progress(value: Any) -> bool:
    return value == _BAR or not isinstance(value, str)


def _progress_of(text: str) -> str | None:
    return _BAR if text == _BAR or _flag_of(text) else None


def _flag_of(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise ValueError
    return text.lower() in YES


def _existing(text: str) -> str:
    if not os.path.isdir(os.path.expanduser(text)):
        raise ValueError
    return text


def _one_of(choices: object) -> _Rule:
    values = get_args(choices)
    return _Rule(f"one of {', '.join(values)}", _text, str, lambda value: value in values)


_TRUTH = _Rule("true or false", _flag, _flag_of)

# A rule that can parse a text has a variable: the option's name in capitals, behind PREFIX.
_RULES = {
    "accuracy_level": _Rule(f"a whole number from 0 to {_MAX_ACCURACY_LEVEL}", _whole, int, is_accuracy_level),
    "block_size": _Rule("a power of two from 16 to 256, 0 or -1", _whole, None, is_block_size),
    "buffer": _one_of(Buffer),
    "spill_dir": _Rule("the path of an existing directory", _directory, _existing, _can_be_directory),
    "threads": _Rule("a whole number of at least 1", _whole, int, lambda value: value >= 1),
    "strict": _TRUTH,
    "cache_dir": _Rule("the path of a directory", _directory, str, _can_be_directory),
    "prepared": _Rule("the path of an existing directory", _directory, _existing, _can_be_directory),
    "cache_max_bytes": _Rule("a whole number of bytes, at least 0", _whole, int, lambda value: value >= 0),
    "verify": _one_of(Verify),
    "dequantize_once": _one_of(Once),
    "share_weights": _TRUTH,
    "progress": _Rule('"bar" or a callable, as a variable 0 or 1', _progress, _progress_of, _is_progress),
}


NAMES = tuple(_RULES)
"""Of all options."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of these words that somebody may have meant who wrote another one."""
    with fork_lock:
        from difflib import get_close_matches
    return next(iter(get_close_matches(word, words, 1, _NEAR)), None)


def check_flag(name: str, given: object) -> None:
    """Raise TypeError for an argument of this name that is neither true nor false."""
    _TRUTH.checked(name, given)


def options_from_environment(environment: Mapping[str, str]) -> Options:
    """The Options that the ``ORT_QDQ_PLUGIN_*`` variables give.

    There is a warning for each value that is not allowed, and for each variable of such a name that is not known. It is
    ignored.
    """
    given: dict[str, Any] = {}
    for name, rule in _RULES.items():
        variable = f"{PREFIX}_{name.upper()}"
        text = environment.get(variable, "").strip()
        if text and rule.parse is not None:
            try:
                given[name] = rule.checked(name, rule.parse(text))
            except ValueError:
                log.warning("%s is %r, must be %s: ignored", variable, text, rule.allowed)
    known = {LOG, LOG_FILE, *(f"{PREFIX}_{name.upper()}" for name, rule in _RULES.items() if rule.parse is not None)}
    for variable, text in environment.items():
        if text and variable.startswith(PREFIX) and variable not in {PREFIX, RUN_LOG_FILE, *known}:
            log.warning("%s is no variable of this package: ignored%s", variable, _advice(variable, known))
    if given.get("share_weights") and not given.keys() & {"cache_dir", "prepared"}:
        log.warning("%s_SHARE_WEIGHTS is set, but %s_CACHE_DIR is not: ignored", PREFIX, PREFIX)
        del given["share_weights"]
    return Options(**given)


def _advice(variable: str, known: Iterable[str]) -> str:
    """What to do about a variable that is not known."""
    # What they all begin with would make any two alike.
    ends = {name.removeprefix(PREFIX): name for name in known}
    end = variable.removeprefix(PREFIX)
    option = end.strip("_").lower()
    if option in _RULES and _RULES[option].parse is None:
        return f", since {option} has none; pass Options({option}=...)"
    meant = nearest(end, ends)
    return f"; did you mean {ends[meant]}?" if meant else f"; there are {', '.join(sorted(known))}"
