"""Files, bytes and paths that are no model: the error is stock's."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session
from tests.support import CPU, linear, python, quiet, save, stock
from tests.withstands.outcomes import outcome

NOT_MODELS: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "directory": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(100_000)),
    "text": lambda path: path.write_text("DequantizeLinear MatMulNBits " * 1000),
    "ones": lambda path: path.write_bytes(b"\xff" * 10_000),
    "zeros": lambda path: path.write_bytes(bytes(10_000)),
    "dangling-link": lambda path: path.symlink_to("nowhere"),
    "link-to-itself": lambda path: path.symlink_to(path),
    "half-a-model": lambda path: path.write_bytes(linear(Weight()).SerializeToString()[:3000]),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["m.onnx", "m.ort", "m"])
@pytest.mark.parametrize("what", NOT_MODELS)
def test_what_is_no_model(tmp_path: Path, what: str, name: str, strict: bool) -> None:
    path = tmp_path / name
    NOT_MODELS[what](path)
    theirs = outcome(lambda: stock(str(path)))
    assert isinstance(theirs, tuple)
    assert outcome(lambda: create_session(path, quiet(), CPU, options=Options(strict=strict))) == theirs


@pytest.mark.parametrize("model", [b"", b"\0", b"\xff" * 9, b"ORTM" * 4, b"DequantizeLinear" * 9, "", "a\0b", "x" * 5000])
def test_bytes_that_are_no_model_and_paths_that_cannot_be(model: str | bytes) -> None:
    theirs = outcome(lambda: stock(model))
    assert isinstance(theirs, tuple)
    assert outcome(lambda: create_session(model, quiet(), CPU)) == theirs


FIFO = """
import sys, threading
import onnxruntime, ort_qdq_plugin
make = {"stock": onnxruntime.InferenceSession, "ours": ort_qdq_plugin.create_session}[sys.argv[1]]
model = open(sys.argv[2], "rb").read()
def write():
    # Blocks until someone reads, and fails (SIGPIPE's error) if he goes away before the end.
    with open(sys.argv[3], "wb") as fifo:
        fifo.write(model)
    print("written")
writer = threading.Thread(target=write, daemon=True)
writer.start()
try:
    make(sys.argv[3])
    print("loaded")
except Exception as error:
    print(type(error).__name__)
writer.join(5)
"""


def test_a_fifo_as_model_is_left_to_stock(tmp_path: Path) -> None:
    """Whoever opens a FIFO takes what is written to it: only stock ONNX Runtime may."""
    path = save(linear(Weight()), tmp_path, "file")
    said = []
    for who in ("stock", "ours"):
        os.mkfifo(tmp_path / who)
        done = python(FIFO, who, path, tmp_path / who, timeout=30)
        assert done.returncode == 0, done.stderr
        said.append(sorted(done.stdout.split()))
    assert said[0] == said[1]
