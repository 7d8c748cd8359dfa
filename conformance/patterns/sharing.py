"""One weight, or one DequantizeLinear, with several readers."""

from __future__ import annotations

from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_ends, matmul, transposed_weight

__all__ = ["BOOK"]

BOOK = Book(group=3)


@BOOK.fused("one DQ, two MatMuls", fusions=2, quick=True)
def _shared_dq(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("MatMul", ["h", "w_d"], "y")


@BOOK.fused("one N-major DQ and one Transpose, two MatMuls", fusions=2)
def _shared_transpose(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", transposed_weight(d, w)], "h")
    d.node("MatMul", ["h", "t"], "y")


@BOOK.fused("one N-major DQ: Gemm(transB=1) and Transpose -> MatMul", fusions=2)
def _shared_gemm_and_matmul(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", transposed_weight(d, w)], "h")
    d.node("Gemm", ["h", "w_d"], "y", transB=1)


@BOOK.fused("one weight, two DQs", fusions=2, quick=True)
def _two_dqs_one_weight(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("DequantizeLinear", ["w", "w_s", "w_z"], "v_d", axis=0, block_size=w.block)
    d.node("MatMul", ["h", "v_d"], "y")


@BOOK.fused("one weight under two sets of scales", fusions=2)
def _two_scales_one_weight(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("DequantizeLinear", ["w", d.floats("v_s", [4, 128])], "v_d", axis=0, block_size=w.block)
    d.node("MatMul", ["h", "v_d"], "y")


@BOOK.fused("a DQ that a MatMul and an Add consume: the MatMul is fused, the DQ stays", stays=1)
def _shared_with_add(d: Draft) -> None:
    w = Weight()
    draw_ends(d, w, 2)
    d.input("r", list(w.shape))
    d.node("MatMul", ["x", d.weight(w)], "y")
    d.output(d.node("Add", ["r", "w_d"], "y2"), w.shape)


@BOOK.fused("the stored weight has another reader: it must not be dropped", quick=True)
def _weight_also_read(d: Draft) -> None:
    w = Weight("uint8")
    matmul(d, w, 2)
    d.output(d.node("Cast", ["w"], "y2", to=TensorProto.FLOAT), w.shape)


@BOOK.fused("two weights with the same bytes", fusions=2)
def _duplicate_weights(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w)], "h")
    for tensor in list(d.initializers):
        twin = TensorProto()
        twin.CopyFrom(tensor)
        twin.name += "2"
        d.initializers.append(twin)
    d.node("DequantizeLinear", ["w2", "w_s2", "w_z2"], "v_d", axis=0, block_size=w.block)
    d.node("MatMul", ["h", "v_d"], "y")
