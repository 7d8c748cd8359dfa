"""The element types of tensors: what each is called, how many bits it takes, and what it may be used for.

Format facts: ``TensorProto.DataType`` in onnx.proto. A new type is one row here.
"""

from __future__ import annotations

from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "BFLOAT16",
    "CODES",
    "DEQUANTIZED_TYPES",
    "ELEMENTS",
    "FLOAT",
    "FLOAT16",
    "INT4",
    "INT8",
    "INT32",
    "INT64",
    "SCALE_TYPES",
    "UINT4",
    "UINT8",
    "WEIGHT_TYPES",
    "Element",
    "bits_of",
    "top_bits",
]


class Element(NamedTuple):
    """One element type."""

    name: str  # as in ``tensor(name)`` of the ONNX specification
    bits: int  # of an element in ``raw_data``. Elements of less than a byte are packed from the low bits up
    weight: str = ""  # "signed" or "unsigned" for types that quantized weights have, "" for others
    scale: bool = False  # whether scales may have this type
    numpy: str = ""  # NumPy's name of the type, "" where NumPy has none


# TensorProto.DataType -> element type. STRING (8) has no fixed size.
ELEMENTS: dict[int, Element] = {
    1: Element("float", 32, scale=True, numpy="float32"),
    2: Element("uint8", 8, weight="unsigned", numpy="uint8"),
    3: Element("int8", 8, weight="signed", numpy="int8"),
    4: Element("uint16", 16, numpy="uint16"),
    5: Element("int16", 16, numpy="int16"),
    6: Element("int32", 32, numpy="int32"),
    7: Element("int64", 64, numpy="int64"),
    9: Element("bool", 8, numpy="bool"),
    10: Element("float16", 16, scale=True, numpy="float16"),
    11: Element("double", 64, numpy="float64"),
    12: Element("uint32", 32, numpy="uint32"),
    13: Element("uint64", 64, numpy="uint64"),
    14: Element("complex64", 64, numpy="complex64"),
    15: Element("complex128", 128, numpy="complex128"),
    16: Element("bfloat16", 16, scale=True),
    17: Element("float8e4m3fn", 8),
    18: Element("float8e4m3fnuz", 8),
    19: Element("float8e5m2", 8),
    20: Element("float8e5m2fnuz", 8),
    21: Element("uint4", 4, weight="unsigned"),
    22: Element("int4", 4, weight="signed"),
    23: Element("float4e2m1", 4),
    24: Element("float8e8m0", 8),
    25: Element("uint2", 2, weight="unsigned"),
    26: Element("int2", 2, weight="signed"),
}

CODES = {element.name: code for code, element in ELEMENTS.items()}
"""Name -> TensorProto.DataType."""

FLOAT, FLOAT16, BFLOAT16 = CODES["float"], CODES["float16"], CODES["bfloat16"]
UINT8, INT8 = CODES["uint8"], CODES["int8"]
INT32, INT64 = CODES["int32"], CODES["int64"]
UINT4, INT4 = CODES["uint4"], CODES["int4"]

WEIGHT_TYPES = frozenset(code for code, element in ELEMENTS.items() if element.weight)
DEQUANTIZED_TYPES = WEIGHT_TYPES | {CODES["uint16"], CODES["int16"], CODES["int32"]}
"""The integers that ONNX Runtime's DequantizeLinear takes on the CPU."""

SCALE_TYPES = frozenset(code for code, element in ELEMENTS.items() if element.scale)


def bits_of(data_type: int) -> int:
    """Bits of an element of this type as ``raw_data`` stores it.

    Raises:
        KeyError: The type has no fixed size, or there is no such type.
    """
    return ELEMENTS[data_type].bits


def top_bits(bits: int) -> int:
    """The byte in which the top bit of every element is set, and no other; elements have `bits` bits: 2, 4 or 8."""
    return 0xFF // ((1 << bits) - 1) << (bits - 1)
