"""Element types by their names, and how their values become bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

__all__ = [
    "ELEMENTS", "FLOATS", "MS", "TYPES", "Array", "Bytes", "Dim", "Element", "external_tensor", "pack", "raw_float",
    "raw_quantized", "raw_tensor", "typed_tensor", "unpack",
]  # fmt: skip

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
Dim = int | str
"""A dimension: its size, or its name where any size will do."""

MS = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Element:
    """A quantized element type."""

    code: int
    bits: int
    signed: bool

    @property
    def low(self) -> int:
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def default_zero(self) -> int:
        """The zero point that MatMulNBits takes when it is given none, seen as this type."""
        return 0 if self.signed else 1 << self.bits - 1


ELEMENTS: Mapping[str, Element] = {
    name: Element(TensorProto.DataType.Value(name.upper()), int(name.lstrip("uint")), signed=not name.startswith("u"))
    for name in ("uint2", "int2", "uint4", "int4", "uint8", "int8", "uint16", "int16", "uint32", "int32")
}
FLOATS: Mapping[str, int] = {name: TensorProto.DataType.Value(name.upper()) for name in ("float", "float16", "bfloat16")}
TYPES: Mapping[str, int] = {
    **FLOATS,
    **{name: element.code for name, element in ELEMENTS.items()},
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}
"""ONNX' code of every type that is drawn with."""


def pack(elements: Bytes, bits: int) -> Bytes:
    """[..., E] elements -> [..., ceil(E * bits / 8)] bytes, low bits first, each row padded with zeros."""
    per_byte = 8 // bits
    missing = -elements.shape[-1] % per_byte
    if missing:
        elements = np.pad(elements, [(0, 0)] * (elements.ndim - 1) + [(0, missing)])
    packed: Bytes = elements[..., 0::per_byte].copy()
    for i in range(1, per_byte):
        packed |= elements[..., i::per_byte] << (i * bits)
    return packed


def unpack(packed: Bytes, bits: int) -> Bytes:
    """[..., B] bytes -> [..., B * 8 / bits] elements, low bits first."""
    fields = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(fields, axis=-1).astype(np.uint8).reshape(*packed.shape[:-1], -1)


def raw_quantized(values: Array, bits: int) -> bytes:
    """`values` in `bits` bits each, low bits first, the last byte filled up with zeros."""
    flat = values.reshape(-1).astype(np.int64)
    if bits > 8:
        return bytes(flat.astype(f"<i{bits // 8}" if bits > 16 else f"<u{bits // 8}").tobytes())
    return bytes(pack((flat & (1 << bits) - 1).astype(np.uint8), bits).tobytes())


def raw_float(values: Array, kind: str) -> bytes:
    """`values` as little-endian float, float16 or bfloat16."""
    if kind == "bfloat16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if kind == "float" else "<f2").tobytes()


def raw_tensor(name: str, code: int, shape: Sequence[int], raw: bytes) -> TensorProto:
    """A tensor from its bytes."""
    return TensorProto(name=name, data_type=code, dims=shape, raw_data=raw)


def external_tensor(name: str, code: int, shape: Sequence[int], location: str, offset: int, length: int) -> TensorProto:
    """A tensor whose bytes are elsewhere."""
    tensor = TensorProto(name=name, data_type=code, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def typed_tensor(tensor: TensorProto) -> TensorProto:
    """The same tensor with its values in `float_data` or `int32_data` instead of `raw_data`."""
    typed = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    kinds: dict[int, str] = {TensorProto.FLOAT: "<f4", TensorProto.FLOAT16: "<u2", TensorProto.INT8: "<i1"}
    field = typed.float_data if tensor.data_type == TensorProto.FLOAT else typed.int32_data
    field.extend(np.frombuffer(tensor.raw_data, kinds.get(tensor.data_type, "<u1")).tolist())
    return typed
