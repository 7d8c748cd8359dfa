"""Random inputs for a model that is only known as a file: of its own types and shapes, so that it can be run with them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin.cli.console import UsageError
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.genai.config import read_config
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.parsed import parse
from ort_qdq_plugin.model.skeleton import open_skeleton

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

__all__ = ["random_inputs"]

_MAX_BYTES = 1 << 30
_LOOKS_UP = ("Gather", "GatherBlockQuantized")
_PASSES_ON = ("Cast", "Identity", "DequantizeLinear")


def random_inputs(model: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Inputs for one run, the same ones each time.

    A dimension that the model leaves open is 1, or 0 if it is the length of a past: a cache of keys and values begins empty.
    If the last dimension of such a cache is open, a genai_config.json beside the model says how long it is.
    Integers are rows of the table that they look up, and 1 elsewhere, as in a mask.

    `shapes` are those of inputs that get others than the model suggests.

    Raises:
        UsageError: A shape is for no input, or an input cannot be made up.
        ModelError, OSError: The model cannot be opened.
    """
    skeleton = open_skeleton(model, None)
    if skeleton is None:
        raise UsageError("inputs cannot be made up for a model in ORT format")
    with closing(skeleton):
        graph = parse(skeleton).proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    unknown = shapes.keys() - {value.name for value in inputs}
    if unknown:
        names = ", ".join(value.name for value in inputs)
        raise UsageError(f"there is no input {', '.join(sorted(unknown))}; inputs are {names}")
    for value in inputs:
        _check_fits(value, shapes.get(value.name))
    rng, rows, head_size = np.random.default_rng(0), _rows(graph), _head_size(model)
    return {
        value.name: _random(value, shapes.get(value.name) or _shape(value, head_size), rows.get(value.name, 0), rng)
        for value in inputs
    }


def _fixed(value: ValueInfoProto) -> list[int | None]:
    """The dimensions of an input; None for one that is open, for which some tools write -1."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims]


def _shape(value: ValueInfoProto, head_size: int) -> tuple[int, ...]:
    dims, fixed = value.type.tensor_type.shape.dim, _fixed(value)
    shape = [int(not _is_past(dim.dim_param)) if known is None else known for known, dim in zip(fixed, dims, strict=True)]
    if any(_is_past(dim.dim_param) for dim in dims[:-1]) and fixed[-1] is None:
        shape[-1] = head_size
    return tuple(shape)


def _check_fits(value: ValueInfoProto, shape: tuple[int, ...] | None) -> None:
    """Raise UsageError if an input cannot have a shape by what the model says of it."""
    if shape is None or not value.type.tensor_type.HasField("shape"):
        return
    fixed = _fixed(value)
    if len(fixed) != len(shape) or any(known not in (None, length) for known, length in zip(fixed, shape, strict=True)):
        dims = value.type.tensor_type.shape.dim
        stated = [dim.dim_param or "?" if known is None else str(known) for known, dim in zip(fixed, dims, strict=True)]
        raise UsageError(
            f"--input {value.name}={_text(shape)}: the model's {value.name} is {' x '.join(stated) or 'a scalar'}"
        )


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _head_size(model: str) -> int:
    """How long keys and values are by the genai_config.json beside a model; 1 if there is none that says it."""
    try:
        size = read_config(os.path.dirname(os.path.abspath(model)))["model"]["decoder"]["head_size"]
    except (ModelError, OSError, KeyError, TypeError):
        return 1
    return size if isinstance(size, int) and size > 0 else 1


def _random(value: ValueInfoProto, shape: tuple[int, ...], rows: int, rng: np.random.Generator) -> np.ndarray:
    tensor = value.type.tensor_type
    element = ELEMENTS.get(tensor.elem_type)
    if element is None or not element.numpy:
        raise UsageError(f"input {value.name} is no tensor of numbers that could be made up")
    if math.prod(shape) * element.bits // 8 > _MAX_BYTES:
        raise UsageError(
            f"input {value.name} of shape {_text(shape)} is too large to be made up: say --input {value.name}=SHAPE"
        )
    kind = np.dtype(element.numpy)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    return (rng.integers(0, rows, shape) if rows else np.ones(shape)).astype(kind)


def _is_past(dimension: str) -> bool:
    """Whether a dimension is what came before this run; "past + 1" is not, nor is a total."""
    return "past" in dimension and "+" not in dimension and "total" not in dimension


def _rows(graph: GraphProto) -> dict[str, int]:
    """How many rows the smallest table has that an input looks up: the input's name -> rows."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    origin: dict[str, str] = {}
    rows: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _PASSES_ON and node.input and node.output:
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
        elif node.op_type in _LOOKS_UP and len(node.input) >= 2:
            table, looked_up = (origin.get(name, name) for name in node.input[:2])
            if len(dims.get(table, ())) > 1:
                rows[looked_up] = min(rows.get(looked_up, dims[table][0]), dims[table][0])
    return rows
