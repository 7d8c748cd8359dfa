"""Wrong uses of the calls. Each is Python that is run as it stands, beside a quantized model."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy
import onnx
import onnxruntime

import ort_qdq_plugin
from conformance.drawing.draft import stack
from conformance.wrong_uses.use import Use, raised, warned
from ort_qdq_plugin import Options, activate, create_session, export, genai, inspect, warm

__all__ = ["USES"]

_NAMES = {
    "Options": Options,
    "activate": activate,
    "create_session": create_session,
    "export": export,
    "genai": genai,
    "inspect": inspect,
    "np": numpy,
    "ort": onnxruntime,
    "ort_qdq_plugin": ort_qdq_plugin,
    "replace": dataclasses.replace,
    "warm": warm,
}


def _use(what: str, *names: str, told: Callable[[Callable[[], object]], str] = raised) -> Use:
    def try_it(folder: Path) -> str:
        onnx.save(stack(1, 256), folder / "model.onnx")
        (folder / "file").touch()
        with contextlib.chdir(folder):
            return told(lambda: eval(what, _NAMES.copy()))

    return Use(what, try_it, names)


_LEVELS, _BLOCKS = "a whole number from 0 to 4", "a power of two from 16 to 256, 0 or -1"
_PASS = "pass options=Options("

USES: tuple[Use, ...] = (
    # Values and types of options.
    _use("Options(accuracy_level='4')", "accuracy_level", "str", _LEVELS),
    _use("Options(accuracy_level=2.5)", "accuracy_level", "float", _LEVELS),
    _use("Options(accuracy_level=True)", "accuracy_level", "bool", _LEVELS),
    _use("Options(accuracy_level=9)", "accuracy_level", _LEVELS),
    _use("Options(accuracy_level=np.array([4, 4]))", "accuracy_level", "ndarray", _LEVELS),
    _use("Options(block_size=48)", "block_size", _BLOCKS),
    _use("Options(block_size='32')", "block_size", "str", _BLOCKS),
    _use("Options(buffer='disk')", "buffer", "one of auto, file, memory"),
    _use("Options(buffer=None)", "buffer", "NoneType", "one of auto, file, memory"),
    _use("Options(spill_dir=5)", "spill_dir", "int", "the path of an existing directory"),
    _use("Options(spill_dir='')", "spill_dir", "the path of an existing directory"),
    _use("Options(threads=0)", "threads", "at least 1"),
    _use("Options(threads='all')", "threads", "str", "a whole number"),
    _use("Options(strict='no')", "strict", "str", "true or false"),
    _use("Options(strict=1)", "strict", "int", "true or false"),
    _use("Options(cache_dir=b'/cache')", "cache_dir", "bytes", "the path of a directory"),
    _use("Options(cache_dir='')", "cache_dir", "the path of a directory"),
    _use("Options(cache_max_bytes=-1)", "cache_max_bytes", "a whole number of bytes, at least 0"),
    _use("Options(cache_max_bytes='1 GB')", "cache_max_bytes", "str", "a whole number of bytes"),
    _use("Options(cache_max_bytes=1e9)", "cache_max_bytes", "float", "a whole number of bytes"),
    _use("Options(verify=True)", "verify", "bool", "one of stat, content"),
    _use("Options(dequantize_once=True)", "dequantize_once", "bool", "one of auto, never, always"),
    _use("Options(share_weights=True)", "share_weights", "cache_dir", "prepared", "give one"),
    _use("Options(progress='yes')", "progress", '"bar" or a callable'),
    _use("Options(prepared=['a', 'b'])", "prepared", "list", "the path of an existing directory"),
    _use("replace(Options(), threads='2')", "threads", "str", "a whole number"),
    # Options that there are not.
    _use("Options(acuracy_level=0)", "acuracy_level", "did you mean accuracy_level?"),
    _use("Options(providers=['CPUExecutionProvider'])", "providers", "there are accuracy_level, block_size"),
    # Options in the wrong place.
    _use("create_session('model.onnx', accuracy_level=0)", "accuracy_level", f"{_PASS}accuracy_level=0)"),
    _use("create_session('model.onnx', acuracy_level=0)", "acuracy_level", f"{_PASS}accuracy_level=0)"),
    _use("create_session('model.onnx', cache='here')", "cache", f"{_PASS}cache_dir='here')"),
    _use("create_session('model.onnx', option=Options())", "option", f"{_PASS}...)"),
    _use("create_session('model.onnx', options={'strict': True})", "options", "dict", f"{_PASS}strict=True)"),
    _use("create_session('model.onnx', options=Options)", "options", "type", f"{_PASS}...)"),
    _use("create_session('model.onnx', options=ort.SessionOptions())", "options", "SessionOptions", "as sess_options"),
    _use("create_session('model.onnx', Options(threads=2))", "sess_options", f"{_PASS}...)"),
    _use(
        "create_session('model.onnx', session_options=ort.SessionOptions())",
        "session_options", "did you mean sess_options?", told=warned,
    ),
    _use("inspect('model.onnx', block_size=32)", "block_size", f"{_PASS}block_size=32)"),
    _use("inspect('model.onnx', options='strict')", "options", "str", f"{_PASS}...)"),
    _use("inspect('model.onnx', check='no')", "check", "str", "true or false"),
    _use("warm('model.onnx', cache_dir='cache')", "cache_dir", f"{_PASS}cache_dir='cache')"),
    _use("warm('model.onnx', options={'cache_dir': 'cache'})", "options", f"{_PASS}cache_dir='cache')"),
    _use("warm('model.onnx', options=None)", "options", f"{_PASS}...)"),
    _use("warm('model.onnx', options=Options())", "options", "cache_dir"),
    _use("export('model.onnx', 'new.onnx', accuracy_level=0)", "accuracy_level", f"{_PASS}accuracy_level=0)"),
    _use("export('model.onnx', 'file', force='no')", "force", "str", "true or false"),
    _use("export('model.onnx', 'new.onnx', progress=True)", "progress", "bool", "callable"),
    _use("activate(strict=True)", "strict", f"{_PASS}strict=True)"),
    _use("activate({'strict': True})", "options", "dict", f"{_PASS}strict=True)"),
    _use("genai.load('model', cache_dir='cache')", "cache_dir", f"{_PASS}cache_dir='cache')"),
    _use("genai.prepare('model', options={'threads': 2})", "options", f"{_PASS}threads=2)"),
    _use("genai.warm('model', options=Options())", "options", "cache_dir"),
    _use("genai.export('model', 'new', options=ort.SessionOptions())", "options", "SessionOptions"),
    # Directories that cannot be used: the load goes on.
    _use(
        "create_session('model.onnx', options=Options(buffer='file', spill_dir='none'))",
        "spill", "none", "packing into memory instead", "spill_dir, or TMPDIR, can name another directory", told=warned,
    ),
    _use(
        "create_session('model.onnx', options=Options(cache_dir='file'))",
        "cache", "file", "Not a directory", "loading without the cache", told=warned,
    ),
    _use("create_session('model.onnx', options=Options(prepared='none'))", "prepared", "none", told=warned),
)  # fmt: skip
