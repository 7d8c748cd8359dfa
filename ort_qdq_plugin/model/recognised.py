"""What a file is that is no ONNX model: in words, for the error. Nothing of a good model comes here.

Facts about formats: each one's first bytes, as its specification or ``file(1)`` has them; Git LFS's pointer files
(docs/spec.md there); safetensors begin with the length of their header, which is JSON.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.sources import ByteSource, FileSource
from ort_qdq_plugin.model.wire import LENGTH, VARINT, WireReader
from ort_qdq_plugin.values import NamedTuple

__all__ = ["why_no_model"]

_HEAD_BYTES = _MAX_PATH = 4096
_TEXT_SHOWN = 40  # characters

# Fields of ModelProto that come before its graph, by key: all are there to be seen in any model's first bytes.
_GRAPH = 7 << 3 | LENGTH
_BEFORE_GRAPH = {1 << 3 | VARINT, 5 << 3 | VARINT, *(number << 3 | LENGTH for number in (2, 3, 4, 6, 8, 14))}

_EXPORT = "export the model to ONNX"
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", f"a GGUF file, as llama.cpp has them: {_EXPORT}"),
    (b"PK\x03\x04", f"a zip archive, as PyTorch's .pt and .pth files are: unpack it, or {_EXPORT}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras writes them: {_EXPORT}"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"\xfd7zXZ\x00", "compressed by xz: unpack it"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
)


class _Head(NamedTuple):
    """The first bytes of a source, and how many there are in all."""

    data: bytes
    size: int


def _is_safetensors(head: _Head) -> bool:
    return head.data[8:9] == b"{" and 0 < int.from_bytes(head.data[:8], "little") <= head.size - 8


def _is_pickle(head: _Head) -> bool:
    return head.data[:1] == b"\x80" and head.data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


_LOOKS: tuple[tuple[Callable[[_Head], object], str], ...] = (
    (lambda head: head.data[4:8] == b"TFL3", f"a TensorFlow Lite model: {_EXPORT}"),
    (_is_safetensors, f"a safetensors file, which has weights and no graph: {_EXPORT}"),
    (lambda head: head.data[257:262] == b"ustar", "a tar archive: unpack it"),
    (_is_pickle, f"a Python pickle, as older PyTorch files are: {_EXPORT}"),
    (lambda head: not any(head.data), "nothing but zeros at its beginning, as of a download that was not finished"),
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)


def why_no_model(source: ByteSource, problem: str) -> str:
    """Why the bytes of a source are no ONNX model. `problem`: what reading them as one came to."""
    head = _Head(_beginning(source), source.size)
    if not head.size:
        return f"{source.name}: not an ONNX model: it is empty"
    found = _named_otherwise(source, head) or _form_of(head)
    if found:
        return f"{source.name}: not an ONNX model: it is {found}"
    if end := _end_of_graph(source):
        return (
            f"{source.name}: not a whole ONNX model: its graph ends at byte {end}, but there are {source.size} bytes "
            f"(a download or a copy that was not finished?)"
        )
    return f"{source.name}: not an ONNX model, or a damaged one: {problem}"


def _beginning(source: ByteSource) -> bytes:
    data = bytearray(min(_HEAD_BYTES, source.size))
    source.read_into(0, memoryview(data))
    return bytes(data)


def _form_of(head: _Head) -> str:
    """What a file with these first bytes is; "" if that is not known."""
    data = head.data
    for beginning, form in _BEGINNINGS:
        if data.startswith(beginning):
            return form
    for looks_so, form in _LOOKS:
        if looks_so(head):
            return form
    if data.startswith(_POINTER):
        size = re.search(rb"\nsize (\d+)", data)
        of = f", of {int(size[1])} bytes," if size else ""
        return f"a Git LFS pointer: the file itself{of} was not fetched, which `git lfs pull` does"
    if _HTML.match(data):
        return "a web page (HTML), maybe an error page that was saved in place of a download"
    return _text_of(data)


def _text_of(data: bytes) -> str:
    """What a text is; "" for other bytes."""
    text = data.decode("utf-8", "replace").rstrip("\ufffd").lstrip("\ufeff")  # the last character may be cut
    if not text or "\ufffd" in text or not all(character.isprintable() or character in "\t\r\n\f" for character in text):
        return ""
    stripped = text.lstrip()
    if stripped.startswith("<?xml"):
        return f"an XML file, as OpenVINO's models are: {_EXPORT}"
    return f"a text that begins with {stripped[:_TEXT_SHOWN]!r}"


def _named_otherwise(source: ByteSource, head: _Head) -> str:
    """What the source's own name, or bytes that are a name, tell; "" if nothing."""
    if not isinstance(source, FileSource):
        with suppress(ValueError):  # no path has a zero byte
            if head.size <= _MAX_PATH and os.path.isfile(head.data):
                return f"the path of a file, {os.fsdecode(head.data)}: give it as a str"
        return ""
    if os.path.basename(source.name) == "genai_config.json":
        return "the configuration of a model of onnxruntime-genai: name its folder"
    # How exporters name the file of a model's weights.
    for ending in (".data", "_data", ".weight", ".bin"):
        stem = source.name.removesuffix(ending)
        for model in (stem, f"{stem}.onnx"):
            if stem != source.name and os.path.isfile(model):
                return f"the external data of a model: name that, {model}"
    return ""


def _end_of_graph(source: ByteSource) -> int:
    """Where the graph of a model ends that is cut off before that; 0 if that is not what is wrong."""
    reader, at = WireReader(source), 0
    with suppress(ModelError):
        for _, key, _, after in reader.fields(0, source.size):
            if key not in _BEFORE_GRAPH:
                return 0
            at = after
    with suppress(ModelError, IndexError):
        key, start = reader.varint(at, source.size)
        length, start = reader.varint(start, source.size)
        if key == _GRAPH and start + length > source.size:
            return start + length
    return 0
