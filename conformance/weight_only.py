"""Weight-only quantization the obvious way: int8 channels of the weights of convolutions, recurrent layers and products.

It is plain NumPy, and knows nothing of the package under test.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from conformance.drawing.canvas import graphs_of

__all__ = ["weight_only"]

_AXES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "Conv": ((1, 0),),
    "ConvTranspose": ((1, 1),),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), ((1, 1), (2, 1))),
    **dict.fromkeys(("MatMul", "Gemm"), ((1, 1),)),
}
"""Operator -> the inputs that are weights, each with the axis of its channels."""
_LEAST_ELEMENTS = 256
_LARGEST = 127


def weight_only(model: onnx.ModelProto, operators: tuple[str, ...] = tuple(_AXES)) -> onnx.ModelProto:
    """A copy of a model of opset 13 or later that dequantizes the constant weights of these operators from int8 channels."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for graph in graphs_of(copy.graph):
        constants = {tensor.name: tensor for tensor in graph.initializer}
        nodes = {
            node.output[0]: node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"
        }
        constants |= {name: node.attribute[0].t for name, node in nodes.items()}
        wanted = [
            (node.input[at], axis)
            for node in graph.node
            if node.op_type in operators
            for at, axis in _AXES[node.op_type]
            if at < len(node.input) and node.input[at] in constants
        ]
        made = []
        for name, axis in dict.fromkeys(wanted):
            weight = numpy_helper.to_array(constants[name])
            if weight.dtype != np.float32 or weight.size < _LEAST_ELEMENTS or weight.ndim < 2:
                continue
            made.append(_dequantized(graph, name, weight, axis))
            if name in nodes:
                graph.node.remove(nodes[name])
            else:
                graph.initializer.remove(constants[name])
        kept = list(graph.node)
        del graph.node[:]
        graph.node.extend([*made, *kept])
    return copy


def _dequantized(graph: onnx.GraphProto, name: str, weight: np.ndarray, axis: int) -> onnx.NodeProto:
    others = tuple(at for at in range(weight.ndim) if at != axis)
    scales = (np.abs(weight).max(axis=others) / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1
    shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
    quantized = np.clip(np.rint(weight / scales.reshape(shape)), -_LARGEST, _LARGEST).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(quantized, f"{name}.int8"))
    graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scales"))
    return helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scales"], [name], f"{name}.dequantize", axis=axis)
