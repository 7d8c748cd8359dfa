"""Operators of onnxruntime-extensions."""

import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session, inspect
from ort_qdq_plugin.ort import installed
from tests.support import CPU, linear, made_report, quiet


def _text_beside_a_product() -> bytes:
    model = linear(Weight())
    model.graph.node.append(helper.make_node("StringUpper", ["text"], ["upper"], domain="ai.onnx.contrib"))
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    model.graph.output.append(helper.make_tensor_value_info("upper", TensorProto.STRING, [1]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return bytes(model.SerializeToString())


def test_operators_of_the_extensions_need_no_registration() -> None:
    pytest.importorskip("onnxruntime_extensions")
    onnx.checker.check_model(linear(Weight()))
    session = create_session(_text_beside_a_product(), None, CPU)
    assert len(made_report(session).fused) == 1
    x = np.zeros((1, Weight().k), np.float32)
    assert session.run(["upper"], {"text": np.array(["abc"]), "x": x})[0] == ["ABC"]


@pytest.mark.parametrize("options", [None, ort.SessionOptions()])
def test_without_the_extensions_the_model_is_for_stock(
    options: ort.SessionOptions | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller may have registered a library that has its operators. Else one sentence says what to type."""
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    installed._told.clear()
    for _ in range(2):
        with pytest.raises(Fail, match=r"ai\.onnx\.contrib"):
            create_session(_text_beside_a_product(), options, CPU)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pip install onnxruntime-extensions" in caplog.text
    assert inspect(_text_beside_a_product()).fused


def test_a_library_of_the_callers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    options = quiet()
    options.register_custom_ops_library(pytest.importorskip("onnxruntime_extensions").get_library_path())
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    report = made_report(create_session(_text_beside_a_product(), options, CPU, options=Options(strict=True)))
    assert (report.route, len(report.fused)) == ("by path", 1)
