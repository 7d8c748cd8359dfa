"""Whole loads of models whose operands are constant only after folding: what is left of them, and what is not computed."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from conformance.patterns.folded import FOLDED
from conformance.patterns.pattern import Pattern
from ort_qdq_plugin import Options, create_session, export
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.report.weights import Reason
from tests.folding.support import constant
from tests.support import CPU, Array, made_report, raised, stock

node = helper.make_node
K, N, BLOCK = 64, 32, 32
X = np.random.default_rng(1).standard_normal((3, K)).astype(np.float32)


def model(nodes: Sequence[NodeProto], tensors: dict[str, tuple[str, Any]], outputs: Sequence[str] = ("y",)) -> ModelProto:
    made = [constant(name, np.asarray(values), kind) for name, (kind, values) in tensors.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", K])
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "folding", [x], results, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def quantized(float_weight: Array, **changed: Any) -> tuple[list[NodeProto], dict[str, tuple[str, Any]]]:
    """A float weight [N, K] quantized to int8 and dequantized."""
    scales = np.abs(float_weight).max(1) / 127
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=0),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=0),
        node("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    return nodes, {"w": ("float", float_weight), "s": ("float", scales), "z": ("int8", np.zeros(N)), **changed}


WEIGHT = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)


def exported(pattern: ModelProto, folder: Path) -> onnx.GraphProto:
    """The graph that ONNX Runtime is given."""
    (folder / "model.onnx").write_bytes(pattern.SerializeToString())
    export(folder / "model.onnx", folder / "fused.onnx")
    return onnx.load(folder / "fused.onnx").graph


def without_optimizing(made: ModelProto) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    results: list[Array] = ort.InferenceSession(made.SerializeToString(), options, CPU).run(None, {"x": X})
    return results


@pytest.mark.parametrize("pattern", [one for one in FOLDED if one.expects == "fused"], ids=lambda one: one.name)
def test_nothing_is_left_of_what_was_folded(pattern: Pattern, tmp_path: Path) -> None:
    before = pattern.build()
    graph = exported(before, tmp_path)
    read, read_before = ({name for one in nodes for name in one.input} for nodes in (graph.node, before.graph.node))
    folded = {"QuantizeLinear", "DequantizeLinear", "Concat", "Clip", "Slice", "Split"}
    assert not folded & {one.op_type for one in graph.node}
    assert {tensor.name for tensor in graph.initializer} & read_before <= read
    assert {name for one in graph.node for name in one.output} <= read | {"y"}


def test_a_weight_that_something_else_reads_stays(tmp_path: Path) -> None:
    nodes, tensors = quantized(WEIGHT)
    made = model(
        [*nodes, node("ReduceSum", ["w"], ["total"]), node("Cast", ["q"], ["qf"], to=1)], tensors, ["y", "total", "qf"]
    )
    graph = exported(made, tmp_path)
    assert "w" in {tensor.name for tensor in graph.initializer}
    assert {"QuantizeLinear", "ReduceSum", "Cast"} <= {one.op_type for one in graph.node}
    assert "DequantizeLinear" not in {one.op_type for one in graph.node}
    session = create_session(made.SerializeToString(), providers=CPU, options=Options(accuracy_level=0))
    assert len(made_report(session).fused) == 1
    for ours, theirs in zip(session.run(None, {"x": X}), without_optimizing(made), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_result_that_leaves_the_graph_stays(tmp_path: Path) -> None:
    nodes, tensors = quantized(WEIGHT)
    graph = exported(model(nodes, tensors, ["y", "q"]), tmp_path)
    assert [one.op_type for one in graph.node].count("QuantizeLinear") == 1
    assert "DequantizeLinear" not in {one.op_type for one in graph.node}


def test_what_the_caller_may_replace_is_not_folded() -> None:
    nodes, tensors = quantized(WEIGHT)
    made = model(nodes, tensors)
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [N, K]))
    session = create_session(made.SerializeToString(), providers=CPU)
    (entry,) = made_report(session).unfused
    assert entry.reason is Reason.OVERRIDABLE
    other = session.run(None, {"x": X, "w": WEIGHT * 0})[0]
    np.testing.assert_array_equal(other, np.zeros((3, N)))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"w": ("float", np.where(WEIGHT > 2, np.nan, WEIGHT))}, "QuantizeLinear"),
        ({"s": ("float", np.where(np.arange(N) == 5, np.nan, 0.1))}, "QuantizeLinear"),
        ({"s": ("float", np.where(np.arange(N) == 5, 0, 0.1))}, "QuantizeLinear"),
    ],
)
def test_what_has_no_definite_result_is_left_to_onnx_runtime(changed: dict[str, Any], why: str) -> None:
    nodes, tensors = quantized(WEIGHT, **changed)
    made = model(nodes, tensors).SerializeToString()
    options = Options(strict=True)  # it is no failure
    session = create_session(made, providers=CPU, options=options)
    report = made_report(session)
    assert (report.route, report.stock_reason) == ("stock", StockReason.NOT_COMPUTED)
    assert why in report.stock_detail
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], stock(made).run(None, {"x": X})[0])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_activations_that_are_quantized_too_run_on_integers_as_in_stock(kind: str) -> None:
    """AIMET's default form. ONNX Runtime folds the weight, and computes on integers then."""
    nodes, tensors = quantized(WEIGHT)
    around = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        *nodes[:2],
        node("Transpose", ["d"], ["t"]),
        node("MatMul", ["xd", "t"], ["h"]),
        node("QuantizeLinear", ["h", "ys", "xz"], ["hq"]),
        node("DequantizeLinear", ["hq", "ys", "xz"], ["y"]),
    ]
    more = {"xs": ("float", np.float32(0.05)), "ys": ("float", np.float32(0.3)), "xz": (kind, 3)}
    made = model(around, {**tensors, **more, "s": ("float", np.float32(0.02)), "z": ("int8", 0)})
    for one in made.graph.node:
        if one.name or one.input[0] in ("w", "q"):
            del one.attribute[:]
    session = create_session(made.SerializeToString(), providers=CPU)
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], stock(made.SerializeToString()).run(None, {"x": X})[0])
    assert not made_report(session).fused


def test_a_large_weight_that_is_not_aligned_is_not_copied() -> None:
    """It is inside the model's file, where ONNX Runtime would have to copy it; but nothing reads it any more."""
    wide = np.random.default_rng(0).standard_normal((512, K)).astype(np.float32)
    nodes, tensors = quantized(wide)
    tensors |= {"z": ("int8", np.zeros(512)), "s": ("float", np.abs(wide).max(1) / 127)}
    for padding in range(4):
        made = model(nodes, tensors)
        made.doc_string = "-" * padding
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(made.SerializeToString())
            report = made_report(create_session(str(path), providers=CPU))
        (fused,) = report.fused
        assert (fused.stored_bytes, fused.packed_bytes) == (wide.nbytes + 512 * 4 + 512, report.packed_bytes)
        assert report.packed_bytes < wide.nbytes / 2


def test_scales_that_are_dequantized_are_not_told_of() -> None:
    rng = np.random.default_rng(2)
    tensors = {
        "w": ("int4", rng.integers(-8, 8, (N, K))),
        "z": ("int4", np.zeros((N, K // BLOCK))),
        "sq": ("uint8", rng.integers(1, 17, (N, K // BLOCK))),
        "ss": ("float", rng.uniform(0.001, 0.002, N)),
    }
    nodes = [
        node("DequantizeLinear", ["sq", "ss"], ["s"], axis=0),
        node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1, block_size=BLOCK),
        node("Gemm", ["x", "d"], ["y"], transB=1),
    ]
    report = made_report(create_session(model(nodes, tensors).SerializeToString(), providers=CPU))
    assert (len(report.fused), report.unfused) == (1, ())
    # With a reader of their own, they are dequantized once beside it.
    made = model([*nodes, node("ReduceSum", ["s"], ["total"])], tensors, ["y", "total"]).SerializeToString()
    session = create_session(made, providers=CPU)
    (entry,) = made_report(session).unfused
    assert (entry.dequantize, entry.reason, entry.bytes_added > 0) == ("s", Reason.CONSUMER, True)
    # As scales of a weight that is dequantized once itself, they go with it.
    einsum = [*nodes[:2], node("ReduceSum", ["d"], ["total"]), node("Mul", ["x", "total"], ["y"])]
    session = create_session(model(einsum, tensors).SerializeToString(), providers=CPU)
    assert [entry.dequantize for entry in made_report(session).unfused] == ["d"]
    theirs = stock(model(einsum, tensors).SerializeToString()).run(None, {"x": X})
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], theirs[0])


def test_the_report_of_a_computed_weight_that_stays() -> None:
    nodes, tensors = quantized(WEIGHT)
    made = model([*nodes[:2], node("Einsum", ["x", "d"], ["y"], equation="mk,nj->mn")], tensors).SerializeToString()
    (entry,) = made_report(create_session(made, providers=CPU, options=Options(dequantize_once="never"))).unfused
    assert (entry.weight, entry.shape, entry.bits) == ("q", (N, K), 8)
    of_scales = N * 4 + N
    assert (entry.stored_bytes, entry.bytes_per_run) == (4 * N * K + of_scales, 4 * N * K)


MOVES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "Reshape": ("Reshape", ["w", "to"], {}), "Flatten": ("Flatten", ["w"], {}), "Concat": ("Concat", ["w"], {"axis": 0}),
    "Slice": ("Slice", ["w", "zero", "rows", "zero"], {}), "Gather": ("Gather", ["w", "all"], {}),
    "Tile": ("Tile", ["w", "once"], {}),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("element", ["int4", "uint4"])
@pytest.mark.parametrize("way", ["DequantizeLinear", "written out", "scale behind"])
def test_what_onnx_runtime_has_no_kernel_for_is_not_hidden(move: str, element: str, way: str) -> None:
    """It moves no elements of less than a byte, but for Transpose, nor do its optimizers here."""
    op, inputs, attributes = MOVES[move]
    dequantize = [node("DequantizeLinear", ["q", "s"], ["d"], axis=1)]
    cast = node("Cast", ["q"], ["c"], to=TensorProto.FLOAT)
    product = [node("MatMul", ["x", "d"], ["y"])]
    nodes = {
        "DequantizeLinear": [*dequantize, *product],
        "written out": [cast, node("Mul", ["c", "s"], ["d"]), *product],
        "scale behind": [cast, node("MatMul", ["x", "c"], ["p"]), node("Mul", ["p", "s"], ["y"])],
    }[way]
    numbers = {"to": [K, N], "zero": [0], "rows": [K], "all": [*range(K)], "once": [1, 1]}
    tensors: dict[str, tuple[str, Any]] = {name: ("int64", values) for name, values in numbers.items() if name in inputs}
    tensors |= {"w": (element, np.arange(K * N).reshape(K, N) % 8), "s": ("float", np.full(N, 0.1))}
    made = model([node(op, inputs, ["q"], **attributes), *nodes], tensors).SerializeToString()
    told = [raised(partial(make, made, providers=CPU)) for make in (ort.InferenceSession, create_session)]
    assert told[0] is not None
    assert told[0] == told[1]
