"""Models that are none, or not all there, given to the calls. Each is Python that is run as it stands."""

import contextlib
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

import ort_qdq_plugin
from conformance.wrong_uses.scene import NEEDED, make_scene
from conformance.wrong_uses.use import Use, raised, warned
from ort_qdq_plugin import Options, create_session, export, genai, inspect, warm

__all__ = ["USES"]

_NAMES = {
    "Options": Options,
    "create_session": create_session,
    "export": export,
    "genai": genai,
    "inspect": inspect,
    "open": open,
    "ort": onnxruntime,
    "warm": warm,
}
_OLD = "1.27.0"  # a release of ONNX Runtime before the oldest that is supported


def _noted(call: Callable[[], object]) -> str:
    """What ONNX Runtime raises, and what this package adds as a note."""
    try:
        call()
    except Exception as error:
        return "\n".join([str(error), *getattr(error, "__notes__", ["no note"])])
    raise AssertionError("it is taken")


def _activated(call: Callable[[], object]) -> str:
    """The same, with this package switched on for all sessions."""
    ort_qdq_plugin.activate()
    try:
        return _noted(call)
    finally:
        ort_qdq_plugin.deactivate()


def _with_an_old_release(call: Callable[[], object]) -> str:
    with _release(_OLD):
        return warned(call)


@contextlib.contextmanager
def _release(version: str) -> Iterator[None]:
    from ort_qdq_plugin.ort import release

    installed, onnxruntime.__version__ = onnxruntime.__version__, version
    release._problem_of.cache_clear()
    try:
        yield
    finally:
        onnxruntime.__version__ = installed
        release._problem_of.cache_clear()


def _use(what: str, *names: str, told: Callable[[Callable[[], object]], str] = raised) -> Use:
    def try_it(folder: Path) -> str:
        make_scene(folder)
        with contextlib.chdir(folder):
            return told(lambda: eval(what, _NAMES.copy()))

    return Use(what, try_it, names)


_CACHE = "options=Options(cache_dir='cache')"
_SHORT = ("model.data", "has 1000 bytes", f"{NEEDED} are needed")
_POINTER = ("pointer.onnx", "not an ONNX model", "Git LFS pointer", "git lfs pull")
_GENAI: tuple[Use, ...] = ()
if find_spec("onnxruntime_genai") is not None:
    _GENAI = (
        _use("genai.load('model.onnx')", "model.onnx: a file, not a folder", "genai_config.json", told=_noted),
        _use("genai.prepare('folder')", "folder: a folder without a genai_config.json", "name an .onnx file", told=_noted),
    )

USES: tuple[Use, ...] = (
    *_GENAI,
    # External data.
    _use("inspect('missing/model.onnx')", "external data", "model.data does not exist", "must lie there"),
    _use("inspect('short/model.onnx')", *_SHORT),
    _use("inspect('short/model.onnx', check=False)", *_SHORT),
    _use("inspect(open('model.onnx', 'rb').read())", "external data 'model.data'", "give its path"),
    _use(f"warm('missing/model.onnx', {_CACHE})", "external data", "model.data does not exist"),
    _use(f"warm('short/model.onnx', {_CACHE})", *_SHORT),
    _use("export('short/model.onnx', 'new.onnx')", *_SHORT),
    _use("create_session('short/model.onnx')", *_SHORT, told=_noted),
    _use("create_session('short/model.onnx', options=Options(strict=True))", *_SHORT, told=_noted),
    _use("ort.InferenceSession('short/model.onnx')  # ORT_QDQ_PLUGIN=1", *_SHORT, told=_activated),
    # No models.
    _use("inspect('pointer.onnx')", *_POINTER),
    _use("create_session('pointer.onnx')", *_POINTER, told=_noted),
    _use(f"warm('pointer.onnx', {_CACHE})", *_POINTER),
    _use("inspect('page.onnx')", "page.onnx", "not an ONNX model", "a web page (HTML)"),
    _use("inspect('archive.onnx')", "archive.onnx", "not an ONNX model", "a zip archive", "export the model to ONNX"),
    _use("inspect('weights.onnx')", "weights.onnx", "not an ONNX model", "a safetensors file", "export the model to ONNX"),
    _use("inspect('notes.onnx')", "notes.onnx", "not an ONNX model", "a text that begins with 'no model"),
    _use("inspect('empty.onnx')", "empty.onnx", "not an ONNX model", "it is empty"),
    _use("inspect('cut.onnx')", "cut.onnx", "not a whole ONNX model", "there are 20000 bytes"),
    _use("inspect(b'model.onnx')", "the path of a file, model.onnx", "give it as a str"),
    # Folders, and files in place of them.
    _use("inspect('folder')", "folder: a folder, not an .onnx file", "name one in it"),
    _use("inspect('genai')", "a folder of onnxruntime-genai", "ort_qdq_plugin.genai"),
    _use("create_session('folder')", "folder: a folder, not an .onnx file", "name one in it", told=_noted),
    _use(f"genai.warm('model.onnx', {_CACHE})", "a file, not a folder of onnxruntime-genai", "model.onnx"),
    _use(f"genai.warm('folder', {_CACHE})", "a folder without a genai_config.json", "name an .onnx file"),
    _use(f"genai.warm('names-none', {_CACHE})", "genai_config.json", "names no .onnx file"),
    _use("genai.export('basic', 'new')", "nothing in it is fused", "graph_optimization_level is ORT_ENABLE_BASIC"),
    # What is not there, and what is given in another way.
    _use(f"warm('nowhere.onnx', {_CACHE})", "nowhere.onnx", "No such file"),
    _use(f"warm(open('model.onnx', 'rb').read(), {_CACHE})", "path is bytes", "must be the path of a model"),
    _use("export('model.onnx', 'folder', force=True)", "folder", "name a file"),
    *([_use("export('model.onnx', 'fifo', force=True)", "fifo", "not a regular file")] * hasattr(os, "mkfifo")),
    _use("export('model.onnx', 'file/new.onnx')", "file", "not a folder"),
    _use("export('float.onnx', 'new.onnx')", "float.onnx", "Nothing in the model is quantized"),
    # An ONNX Runtime that is too old.
    _use(
        f"create_session('model.onnx')  # with onnxruntime {_OLD}",
        f"onnxruntime {_OLD} is older than", "pip install --upgrade", told=_with_an_old_release,
    ),
)  # fmt: skip
