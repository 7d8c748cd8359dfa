"""What weights are, in numbers: as ONNX Runtime computes them without optimizations, and as decisions describe them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS, unpack
from ort_qdq_plugin.fusion.centred import Centred
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.dequantize import Dequantized, QuantizedMatrix, Seen
from ort_qdq_plugin.fusion.routes import Routes
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.model.tensors import StoredTensor
from tests.fusion.support import locate
from tests.support import CPU, Array, quiet

__all__ = ["computed", "followed", "matrix_values", "numbers", "seen_values"]

_BY_CODE = {element.code: element for element in ELEMENTS.values()}
_FLOATS = {1: "<f4", 10: "<f2"}


def computed(draft: Draft, *names: str, feeds: Mapping[str, Any] | None = None) -> list[Array]:
    """What ONNX Runtime computes for values of a model, with nothing optimized."""
    outputs = draft.outputs[:]
    draft.outputs[:] = []
    for name in names:
        draft.outputs.append(helper.make_empty_tensor_value_info(name))
    model = draft.model().SerializeToString()
    draft.outputs[:] = outputs
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[Array] = ort.InferenceSession(model, options, providers=CPU).run(list(names), dict(feeds or {}))
    return found


def followed(draft: Draft, name: str) -> Seen:
    """The weight that a value of a drawn model is taken for."""
    scope = model_scope(draft.model())
    return Routes(Constants(locate), Centred()).weight(scope, name)


def numbers(tensor: StoredTensor) -> Array:
    """The elements of a tensor in float, in its shape."""
    raw = tensor.read()
    if tensor.data_type in _FLOATS:
        return raw.view(_FLOATS[tensor.data_type]).astype(np.float64).reshape(tensor.shape)
    element = _BY_CODE[tensor.data_type]
    values = unpack(raw, element.bits)[: math.prod(tensor.shape)].astype(np.float64).reshape(tensor.shape)
    return np.where(values >= 1 << element.bits - 1, values - (1 << element.bits), values) if element.signed else values


def _values(weight: Dequantized) -> Array:
    shape = weight.weight.shape

    def spread(tensor: StoredTensor) -> Array:
        values = numbers(tensor)
        if weight.axis is None:
            return values.reshape(())
        if weight.block:
            return np.repeat(values, weight.block, weight.axis)[tuple(slice(size) for size in shape)]
        return values.reshape([size if axis == weight.axis else 1 for axis, size in enumerate(shape)])

    result = numbers(weight.weight) - (0 if weight.zero_points is None else spread(weight.zero_points))
    result = result * spread(weight.scales)
    for factor in weight.factors:
        result = result * factor.values(tuple((0, size) for size in factor.shape))
    return result


def seen_values(seen: Seen) -> Array:
    """The values of a weight as its readers see it."""
    values, view = _values(seen.dequantized), seen.view
    assert view.stored_shape == values.shape
    order = [axis for axes in view.axes for axis in axes]
    left = [axis for axis, size in enumerate(values.shape) if axis not in order and size == 1]
    return values.transpose(order + left).reshape(view.shape)


def matrix_values(matrix: QuantizedMatrix) -> Array:
    """The values of W[K, N]."""
    k, n = matrix.k, matrix.n

    def by_column(tensor: StoredTensor) -> Array:
        values = numbers(tensor)
        if not matrix.block:
            return np.broadcast_to(values.reshape(1, -1), (k, n))
        blocks = values.reshape((-1, n) if matrix.k_major else (n, -1))
        return np.repeat(blocks if matrix.k_major else blocks.T, matrix.block, 0)[:k]

    elements = numbers(matrix.weight)
    result = elements.reshape(k, n) if matrix.k_major else elements.reshape(n, k).T
    if matrix.zero_points is not None:
        result = result - by_column(matrix.zero_points)
    elif matrix.centred and not matrix.signed:
        result = result - (1 << matrix.bits - 1)
    result = result * by_column(matrix.scales)
    return result if matrix.rows is None else result * numbers(matrix.rows)[:, None]
