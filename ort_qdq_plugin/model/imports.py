"""The domains that a model imports, without parsing it.

Format facts: ModelProto and OperatorSetIdProto in onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

from contextlib import closing

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.sources import ByteSource, FileSource, MemorySource
from ort_qdq_plugin.model.wire import LENGTH, WireReader

__all__ = ["imported_domains"]

_OPSET_IMPORT, _FUNCTION = 8 << 3 | LENGTH, 25 << 3 | LENGTH  # fields of ModelProto
_DOMAIN = 1 << 3 | LENGTH  # of OperatorSetIdProto


def imported_domains(model: str | bytes) -> set[str] | None:
    """The domains of all operators that the model, given by its path or as bytes, may have.

    None: they cannot be told. It has functions, whose bodies import domains of their own, or it cannot be read.
    """
    try:
        with closing(MemorySource(model) if isinstance(model, bytes) else FileSource(model)) as source:
            return _imported(source)
    except (ModelError, OSError, UnicodeDecodeError):
        return None


def _imported(source: ByteSource) -> set[str] | None:
    reader, domains = WireReader(source), set()
    for _, key, start, end in reader.fields(0, source.size):
        if key == _FUNCTION:
            return None
        if key == _OPSET_IMPORT:
            domain = bytearray()
            for _, inner, at, after in reader.fields(start, end):
                if inner == _DOMAIN:
                    domain = bytearray(after - at)
                    source.read_into(at, memoryview(domain))
            domains.add(domain.decode())
    return domains
