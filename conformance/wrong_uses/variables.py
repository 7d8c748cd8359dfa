"""Wrong uses of the variables, as they would be typed in front of a command."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from conformance.wrong_uses.use import Use, said_by, warned
from ort_qdq_plugin.options import options_from_environment

__all__ = ["USES"]

_ON = "ORT_QDQ_PLUGIN=1"


def _given(what: str) -> Mapping[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(what))


def _option(what: str, *names: str) -> Use:
    """Of a variable that gives an option: tried in this process, since a row of its own takes tenths of a second."""
    return Use(what, lambda folder: warned(lambda: options_from_environment(_given(what))), names)


def _switch(what: str, *names: str) -> Use:
    """Of a variable that counts before there are options: tried by a program that imports what ONNX Runtime is called."""

    def try_it(folder: Path) -> str:
        (folder / "onnxruntime.py").touch()
        return said_by("import onnxruntime", folder, **_given(what))

    return Use(what, try_it, names)


def _log(what: str, *names: str) -> Use:
    """Of a variable that says what is logged: tried by a program that creates no session."""
    return Use(what, lambda folder: said_by("import onnxruntime", folder, **_given(f"{_ON} {what}")), names)


USES: tuple[Use, ...] = (
    _switch("ORT_QDQ_PLUGIN=2", "ORT_QDQ_PLUGIN", "must be 1 or 0"),
    _switch("ORT_QDQ_PLUGIN=ture", "ORT_QDQ_PLUGIN", "must be 1 or 0"),
    _log("ORT_QDQ_PLUGIN_LOG=loud", "ORT_QDQ_PLUGIN_LOG", "one of debug, info"),
    _log("ORT_QDQ_PLUGIN_LOG_FILE=none/log", "ORT_QDQ_PLUGIN_LOG_FILE", "none/log", "a file that can be written"),
    _log("ORT_QDQ_PLUGIN_ACURACY_LEVEL=0", "ORT_QDQ_PLUGIN_ACURACY_LEVEL", "did you mean ORT_QDQ_PLUGIN_ACCURACY_LEVEL?"),
    _option("ORT_QDQ_PLUGIN_CACHE=/cache", "ORT_QDQ_PLUGIN_CACHE", "did you mean ORT_QDQ_PLUGIN_CACHE_DIR?"),
    _option("ORT_QDQ_PLUGIN_LOGFILE=log", "ORT_QDQ_PLUGIN_LOGFILE", "did you mean ORT_QDQ_PLUGIN_LOG_FILE?"),
    _option("ORT_QDQ_PLUGIN_DEVICE=cpu", "ORT_QDQ_PLUGIN_DEVICE", "there are ORT_QDQ_PLUGIN_ACCURACY_LEVEL, "),
    _option("ORT_QDQ_PLUGIN_BLOCK_SIZE=32", "ORT_QDQ_PLUGIN_BLOCK_SIZE", "pass Options(block_size=...)"),
    _option("ORT_QDQ_PLUGIN_ACCURACY_LEVEL=9", "ORT_QDQ_PLUGIN_ACCURACY_LEVEL", "a whole number from 0 to 4"),
    _option("ORT_QDQ_PLUGIN_ACCURACY_LEVEL=2.5", "ORT_QDQ_PLUGIN_ACCURACY_LEVEL", "a whole number from 0 to 4"),
    _option("ORT_QDQ_PLUGIN_BUFFER=disk", "ORT_QDQ_PLUGIN_BUFFER", "one of auto, file, memory"),
    _option("ORT_QDQ_PLUGIN_SPILL_DIR=none", "ORT_QDQ_PLUGIN_SPILL_DIR", "the path of an existing directory"),
    _option("ORT_QDQ_PLUGIN_THREADS=0", "ORT_QDQ_PLUGIN_THREADS", "a whole number of at least 1"),
    _option("ORT_QDQ_PLUGIN_THREADS=all", "ORT_QDQ_PLUGIN_THREADS", "a whole number of at least 1"),
    _option("ORT_QDQ_PLUGIN_STRICT=maybe", "ORT_QDQ_PLUGIN_STRICT", "true or false"),
    _option("ORT_QDQ_PLUGIN_CACHE_MAX_BYTES='1 GB'", "ORT_QDQ_PLUGIN_CACHE_MAX_BYTES", "a whole number of bytes"),
    _option("ORT_QDQ_PLUGIN_VERIFY=always", "ORT_QDQ_PLUGIN_VERIFY", "one of stat, content"),
    _option("ORT_QDQ_PLUGIN_SHARE_WEIGHTS=1", "ORT_QDQ_PLUGIN_SHARE_WEIGHTS", "ORT_QDQ_PLUGIN_CACHE_DIR"),
    _option("ORT_QDQ_PLUGIN_PREPARED=none", "ORT_QDQ_PLUGIN_PREPARED", "the path of an existing directory"),
    _option("ORT_QDQ_PLUGIN_DEQUANTIZE_ONCE=1", "ORT_QDQ_PLUGIN_DEQUANTIZE_ONCE", "one of auto, never, always"),
)
