"""Activations of int8 that would be moved by what stands before a fused node: ONNX Runtime's optimizer has to see none."""

import numpy as np
import pytest

from conformance.drawing.draft import Draft
from ort_qdq_plugin import Reason, create_session
from tests.support import CPU, made_report, stock, with_entries

SIZE = 64


def left_operand(element: str, opset: int) -> Draft:
    """y = W x, of which the activation is quantized and dequantized."""
    draft = Draft("left", opset=opset)
    draft.input("x", [SIZE, 8])
    draft.scalar("s", 0.05)
    draft.quantized("z", element, ())
    draft.write("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)")
    draft.dequantize("w", (32, SIZE), axis=0, block=0, element="int8", zero="none")
    draft.write("y = MatMul(w_d, d)")
    draft.output("y", [32, 8])
    return draft


@pytest.mark.parametrize(("element", "opset", "is_left"), [
    ("int8", 21, True), ("int8", 17, False), ("uint8", 21, False), ("uint8", 17, False),
])  # fmt: skip
def test_the_left_operand_of_a_quantized_activation(element: str, opset: int, is_left: bool) -> None:
    model = left_operand(element, opset).model().SerializeToString()
    options = with_entries({"session.qdqisint8allowed": "0"})  # as by default on x86: ARM's integer kernels take them
    session = create_session(model, options, CPU)
    report = made_report(session)
    assert (len(report.fused), [entry.reason for entry in report.unfused]) == (
        (0, [Reason.MOVED_INT8]) if is_left else (1, [])
    )
    x = {"x": np.random.default_rng(0).standard_normal((SIZE, 8)).astype(np.float32)}
    wanted = stock(model, options).run(None, x)[0]
    np.testing.assert_allclose(session.run(None, x)[0], wanted, atol=0.02 * np.abs(wanted).max())
