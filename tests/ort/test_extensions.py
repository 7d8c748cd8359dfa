"""Operators of onnxruntime-extensions."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin import create_session
from tests.support import CPU, linear, made_report


def test_operators_of_the_extensions_need_no_registration() -> None:
    model = linear(Weight())
    model.graph.node.append(helper.make_node("StringUpper", ["text"], ["upper"], domain="ai.onnx.contrib"))
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    model.graph.output.append(helper.make_tensor_value_info("upper", TensorProto.STRING, [1]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    onnx.checker.check_model(linear(Weight()))
    session = create_session(bytes(model.SerializeToString()), None, CPU)
    assert len(made_report(session).fused) == 1
    assert session.run(["upper"], {"text": np.array(["abc"]), **_zeros(session)})[0] == ["ABC"]


def _zeros(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    return {
        value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], np.float32)
        for value in session.get_inputs()
        if value.type == "tensor(float)"
    }
