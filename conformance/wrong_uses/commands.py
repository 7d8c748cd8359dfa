"""Wrong uses of the commands. Each is a command line, carried out in this process beside what `make_scene` writes."""

import contextlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from conformance.wrong_uses.scene import NEEDED, make_scene
from conformance.wrong_uses.use import Use
from ort_qdq_plugin.cli.main import main

__all__ = ["USES"]

_BAD_USAGE = 2  # the exit code that the documentation says


def _use(line: str, *names: str, without: str = "") -> Use:
    """A command line; `without`: a module that is not installed."""

    def try_it(folder: Path) -> str:
        make_scene(folder)
        with contextlib.chdir(folder):
            code, told = _carried_out(shlex.split(line), without)
        if code != _BAD_USAGE or told.count("\n") != 1:
            raise AssertionError(f"exit code {code}: {told}")
        return told

    return Use(f"ort-qdq {line}" + (f"  # without {without}" if without else ""), try_it, names)


def _carried_out(arguments: list[str], without: str) -> tuple[object, str]:
    """The exit code of a command, and what it writes to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _kept(without):
        try:
            code: object = main(arguments)
        except SystemExit as end:
            code = end.code
    return code, err.getvalue()


@contextlib.contextmanager
def _kept(without: str) -> Iterator[None]:
    """While the block runs there is no terminal, and maybe a module less. What a command changes is put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    missing = {without: None} if without else {}
    variables = {name: value for name, value in os.environ.items() if not name.startswith("ORT_QDQ_PLUGIN")}
    try:
        with (
            mock.patch.dict(os.environ, variables, clear=True),
            mock.patch.dict(sys.modules, missing),
            mock.patch.object(sys, "stdin", io.StringIO()),
        ):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


_SHORT = ("short/model.data", "has 1000 bytes", f"{NEEDED} are needed")
_MISSING = ("missing/model.onnx", "external data", "missing/model.data does not exist")
_POINTER = ("pointer.onnx", "not an ONNX model", "Git LFS pointer", "git lfs pull")
_NO_DIRECTORY = ("which directory?", "--dir", "ORT_QDQ_PLUGIN_CACHE_DIR")

USES: tuple[Use, ...] = (
    _use("inspekt model.onnx", "inspekt", "inspect", "--help"),
    _use("--print-completion bash", "shtab is not installed", "pip install 'ort-qdq-plugin[cli]'", without="shtab"),
    # inspect
    _use("inspect", "model", "--help"),
    _use("inspect ''", "model is empty", "must be a path"),
    _use("inspect nowhere.onnx", "nowhere.onnx", "No such file"),
    _use("inspect model.onnx --unfsed", "--unfsed", "--help"),
    _use("inspect short/model.onnx", *_SHORT),
    _use("inspect missing/model.onnx", *_MISSING),
    _use("inspect pointer.onnx", *_POINTER),
    _use("inspect notes.onnx", "notes.onnx", "not an ONNX model", "a text"),
    _use("inspect model.data", "model.data", "the external data of a model", "name that, model.onnx"),
    _use("inspect genai/genai_config.json", "not an ONNX model", "onnxruntime-genai: name its folder"),
    _use("inspect folder", "folder", "without a genai_config.json", "name an .onnx file"),
    _use("inspect names-none", "genai_config.json", "names no .onnx file"),
    _use("inspect off", "'../model.onnx'", "genai_config.json"),
    # bench
    _use("bench ''", "model is empty", "must be a path"),
    _use("bench genai", "genai: a folder", "name an .onnx file in it"),
    _use("bench short/model.onnx", *_SHORT),
    _use("bench pointer.onnx", *_POINTER),
    _use("bench model.onnx --peers stock,other", "there is no peer other", "stock, qoperator, cached, shared"),
    _use("bench model.onnx --runs 0", "--runs", "'0'", "a whole number of at least 1"),
    _use("bench model.onnx --runs many", "--runs", "'many'", "a whole number of at least 1"),
    _use("bench model.onnx --layers 2", "--layers", "without a model"),
    _use("bench model.onnx --input x", "--input x", "such as ids=1x128"),
    _use("bench model.onnx --input ids=1x8", "there is no input ids", "inputs are x"),
    _use("bench model.onnx --input x=1x2x3", "--input x=1x2x3", "x 256"),
    _use("bench model.onnx --input x=99999999x256", "input x", "too large", "--input x=SHAPE"),
    _use("bench model.onnx --plot nowhere/memory.png", "--plot nowhere/memory.png", "there is no folder"),
    _use("bench model.onnx --plot memory.docx", "--plot memory.docx", "must end with", ".png"),
    _use("bench model.onnx --plot folder", "--plot folder", "must be a file"),
    _use("bench model.onnx --plot m.png", "matplotlib", "pip install 'ort-qdq-plugin[plot]'", without="matplotlib"),
    # run
    _use("run", "which program?", "ort-qdq run -- python program.py"),
    _use("run -- no-such-program", "no-such-program", "PATH"),
    _use("run -- ./program.py", "./program.py", "say python ./program.py"),
    # export
    _use("export model.onnx ''", "out is empty", "must be a path"),
    _use("export model.onnx folder --force", "folder", "name a file"),
    _use("export model.onnx file", "file is there already", "--force"),
    _use("export model.onnx nowhere/new.onnx", "nowhere", "No such file"),
    _use("export model.onnx file/new.onnx", "file", "not a folder"),
    _use("export model.onnx new.onnx --accuracy-level 9", "--accuracy-level", "choose from 0, 1, 2, 3, 4"),
    _use("export float.onnx new.onnx", "float.onnx", "Nothing in the model is quantized"),
    _use("export short/model.onnx new.onnx", *_SHORT),
    _use("export genai file", "file is there already", "name another folder"),
    _use("export genai genai/new", "genai/new", "inside the other", "name one elsewhere"),
    _use("export basic new", "basic", "nothing in it is fused", "graph_optimization_level is ORT_ENABLE_BASIC"),
    # warm, prepare
    _use("warm nowhere.onnx --dir cache", "nowhere.onnx", "No such file"),
    _use("warm model.onnx", *_NO_DIRECTORY),
    _use("warm model.onnx --dir file", "file: a file", "must be a directory"),
    _use("warm short/model.onnx --dir cache", *_SHORT),
    _use("warm missing/model.onnx --dir cache", *_MISSING),
    _use("warm pointer.onnx --dir cache", *_POINTER),
    _use("warm folder --dir cache", "folder", "without a genai_config.json", "name an .onnx file"),
    _use("prepare model.onnx", "DIR", "--help"),
    _use("prepare model.onnx file", "file: a file", "must be a directory"),
    _use("prepare genai new", "genai: a folder", "name an .onnx file in it"),
    _use("prepare missing/model.onnx new", *_MISSING),
    # cache, demo
    _use("cache", "action", "--help"),
    _use("cache list", *_NO_DIRECTORY),
    _use("cache list --dir nowhere", "nowhere", "no such directory"),
    _use("cache list --dir file", "file: a file", "must be a directory"),
    _use("cache empty --dir cache", "'empty'", "'clear'"),
    _use("cache prune --dir cache --max-bytes 1GB", "--max-bytes", "'1GB'", "a whole number"),
    _use("cache list --dir cache --max-bytes 9", "--max-bytes", "prune"),
    _use("cache clear --dir cache --json", "--json", "list and verify"),
    _use("demo --runs 0", "--runs", "'0'", "a whole number of at least 1"),
)  # fmt: skip
