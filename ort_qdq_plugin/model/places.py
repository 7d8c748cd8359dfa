"""Where the initializers of a serialized model have their bytes, seen without parsing it.

Format facts: ModelProto, GraphProto, TensorProto and StringStringEntryProto in onnx.proto, in protobuf's wire format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.wire import LENGTH, VARINT, WireReader
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Place", "places"]

_GRAPH, _TRAINING_INFO = 7 << 3 | LENGTH, 20 << 3 | LENGTH  # of ModelProto
_NODE, _INITIALIZER, _SPARSE = 1 << 3 | LENGTH, 5 << 3 | LENGTH, 15 << 3 | LENGTH  # of GraphProto
_INPUT = 1 << 3 | LENGTH  # of NodeProto
_DIM, _PACKED_DIMS, _DATA_TYPE = 1 << 3 | VARINT, 1 << 3 | LENGTH, 2 << 3 | VARINT  # of TensorProto
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8 << 3 | LENGTH, 13 << 3 | LENGTH, 14 << 3 | VARINT
_KEY, _VALUE = 1 << 3 | LENGTH, 2 << 3 | LENGTH  # of StringStringEntryProto
_EXTERNAL = 1  # TensorProto.DataLocation

# What every reference to external data contains: the key `location`, as field 1 of an entry.
_REFERENCE = b"\x0a\x08location"
# The types of nodes whose inputs ONNX Runtime copies whenever it infers shapes, as field 4 of a node.
_LOOPS = (b"\x22\x04Loop", b"\x22\x04Scan")
_MAX_DIGITS = 20  # of a 64-bit number


class Place(NamedTuple):
    """Where the bytes of an initializer are, and where the model says so."""

    name: bytes  # of the initializer
    location: str
    offset: int
    nbytes: int  # what its type and its dimensions take
    element_bits: int
    # Where the two texts are in the model's bytes.
    location_at: int
    offset_at: int  # 0: it is not said

    @property
    def is_aligned(self) -> bool:
        """Whether the bytes start at a multiple of an element's size."""
        return self.offset % max(1, self.element_bits // 8) == 0


def places(data: bytes) -> list[Place]:
    """Those of the initializers of a model's main graph whose bytes are elsewhere.

    Args:
        data: A serialized ModelProto without large tensors (`wire.without_large_tensors`).

    Raises:
        ModelError: Other tensors than these refer to bytes elsewhere too, such as attributes and those of subgraphs; a
            reference is none that ONNX Runtime takes; one is of a loop's input, which ONNX Runtime copies again and again;
            or the model has parts that are seldom met (sparse initializers, training information, several messages for
            one graph).
    """
    reader = WireReader(data)
    graphs = []
    for _, key, start, end in reader.fields(0, len(data)):
        if key == _TRAINING_INFO:
            raise ModelError("training information")
        if key == _GRAPH:
            graphs.append((start, end))
    if len(graphs) != 1:
        raise ModelError(f"{len(graphs)} graphs")
    carried: set[bytes] = set()  # by loops
    found = list(_of_graph(data, reader, *graphs[0], carried))
    if any(place.name in carried for place in found):
        raise ModelError("a loop's input with external data")
    if data.count(_REFERENCE) != len(found):
        raise ModelError("attributes or subgraphs with external data")
    return found


def _of_graph(data: bytes, reader: WireReader, start: int, end: int, carried: set[bytes]) -> Iterator[Place]:
    for _, key, first, last in reader.fields(start, end):
        if key == _NODE and any(data.find(loop, first, last) >= 0 for loop in _LOOPS):
            carried.update(data[at:after] for _, part, at, after in reader.fields(first, last) if part == _INPUT)
        if key == _SPARSE:
            raise ModelError("sparse initializers")
        if key == _INITIALIZER and data.find(_REFERENCE, first, last) >= 0:
            yield _of_tensor(data, reader, first, last)


def _of_tensor(data: bytes, reader: WireReader, start: int, end: int) -> Place:
    dims: list[int] = []
    name, data_type, is_external = b"", 0, False
    texts: dict[bytes, tuple[int, int]] = {}  # key -> where its value starts and ends
    for _, key, at, after in reader.fields(start, end):
        if key == _DIM:
            dims.append(reader.varint(at, after)[0])
        elif key == _PACKED_DIMS:
            while at < after:
                size, at = reader.varint(at, after)
                dims.append(size)
        elif key == _DATA_TYPE:
            data_type = reader.varint(at, after)[0]
        elif key == _NAME:
            name = data[at:after]
        elif key == _DATA_LOCATION:
            is_external = reader.varint(at, after)[0] == _EXTERNAL
        elif key == _EXTERNAL_DATA:
            entry = {part: (first, last) for _, part, first, last in reader.fields(at, after)}
            text = data[slice(*entry.get(_KEY, (0, 0)))]
            if text in texts or entry.keys() != {_KEY, _VALUE}:
                raise ModelError("an entry of external data that is no pair, or is said twice")
            texts[text] = entry[_VALUE]
    is_usual = {b"location", b"length"} <= texts.keys() <= {b"location", b"offset", b"length"}
    if not is_external or data_type not in ELEMENTS or not is_usual:
        raise ModelError("external data that is not as it usually is")
    bits = ELEMENTS[data_type].bits
    nbytes = -(-math.prod(dims) * bits // 8)
    if _number(data[slice(*texts[b"length"])]) != nbytes:
        raise ModelError("a tensor and its external data differ in length")
    location_at, location_end = texts[b"location"]
    offset_at, offset_end = texts.get(b"offset", (0, 0))
    offset = _number(data[offset_at:offset_end]) if offset_at else 0
    return Place(name, data[location_at:location_end].decode(), offset, nbytes, bits, location_at, offset_at)


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ModelError("external data whose offset or length is no number")
    return int(text)
