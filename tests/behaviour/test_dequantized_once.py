"""Weights that are dequantized once, in whole models: the same numbers as ONNX Runtime's own, by every way to a session."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin import Options, Reason, create_session, inspect, warm
from ort_qdq_plugin.load.export import export
from ort_qdq_plugin.options import Once
from tests.support import (
    CPU,
    FORMS,
    ROUTE,
    Form,
    added_provider,
    made_report,
    quiet,
    save,
    saved_nodes,
    stock,
    with_entries,
    x_of,
)

CHANNELS, FILTERS, WIDTH, HIDDEN = 8, 16, 12, 16

# Channels of int8, as weight-only quantizers write them, and two other ways.
WAYS: dict[str, dict[str, Any]] = {
    "int8 channels": {"element": "int8", "block": PER_CHANNEL, "zero": "none"},
    "uint4 blocks": {"element": "uint4", "block": 4},
    "uint16": {"element": "uint16", "block": PER_TENSOR, "scale_range": (1e-5, 3e-5)},
}


def convolution(draft: Draft, kind: str, how: Mapping[str, Any]) -> None:
    transposed = kind == "ConvTranspose"
    draft.input("x", [2, CHANNELS, WIDTH, WIDTH])
    draft.dequantize(
        "w", (CHANNELS, FILTERS, 3, 3) if transposed else (FILTERS, CHANNELS, 3, 3), axis=int(transposed), **how
    )
    draft.dequantize("b", (FILTERS,), axis=0, block=PER_TENSOR, element="int32", zero="none", scale_range=(1e-5, 3e-5))
    draft.node(kind, ["x", "w_d", "b_d"], "y", pads=[1] * 4)


def recurrent(draft: Draft, kind: str, how: Mapping[str, Any]) -> None:
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * HIDDEN
    draft.input("x", [5, 2, CHANNELS])
    draft.dequantize("w", (1, rows, CHANNELS), axis=1, **how)
    draft.dequantize("r", (1, rows, HIDDEN), axis=1, **how)
    draft.node(kind, ["x", "w_d", "r_d"], "y", hidden_size=HIDDEN)


def others(draft: Draft, kind: str, how: Mapping[str, Any]) -> None:
    draft.input("x", [3, CHANNELS, WIDTH])
    if kind == "Einsum":
        draft.dequantize("w", (CHANNELS, WIDTH, HIDDEN), axis=0, **how)
        draft.node("Einsum", ["x", "w_d"], "y", equation="bcw,cwh->bch")
    else:
        draft.dequantize("w", (CHANNELS, WIDTH), axis=1, **how)
        draft.node(kind, ["x", "w_d"], "y")


KINDS: dict[str, Callable[[Draft, str, Mapping[str, Any]], None]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), convolution),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("Einsum", "Mul"), others),
}


def model_of(kind: str, way: str = "int8 channels") -> onnx.ModelProto:
    draft = Draft(f"{kind} {way}")
    KINDS[kind](draft, kind, WAYS[way])
    draft.output("y", None)
    return draft.model()


def in_float(model: onnx.ModelProto) -> bytes:
    """The model as it was before it was quantized: with the values that ONNX Runtime itself dequantizes."""
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    values = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None) for node in nodes]
    alone = helper.make_graph(nodes, "g", [], values, model.graph.initializer)
    made = helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)
    found = stock(made.SerializeToString(), level("DISABLE_ALL")).run(None, {})
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.initializer[:], twin.graph.node[:]
    twin.graph.node.extend(node for node in model.graph.node if node not in nodes)
    for value, array in zip(values, found, strict=True):
        twin.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return bytes(twin.SerializeToString())


def level(wanted: str, options: ort.SessionOptions | None = None) -> ort.SessionOptions:
    made = options or quiet()
    made.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{wanted}")
    return made


def outputs(session: ort.InferenceSession) -> list[Any]:
    return list(session.run(None, x_of(session)))


def check_same(session: ort.InferenceSession, other: ort.InferenceSession) -> None:
    for one, two in zip(outputs(session), outputs(other), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def added(session: ort.InferenceSession) -> int:
    """Bytes of the values of weights. Those of vectors are not told of."""
    return sum(entry.bytes_added for entry in made_report(session).unfused)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_to_the_last_bit(kind: str, way: str) -> None:
    """As unoptimized ONNX Runtime, and as it computes the model in float, unoptimized and with all optimizations."""
    model = model_of(kind, way)
    data, twin = model.SerializeToString(), in_float(model)
    session = create_session(data, level("ENABLE_EXTENDED"), CPU, options=Options(strict=True))
    report = made_report(session)
    assert (len(report.fused), {entry.bytes_per_run for entry in report.unfused}) == (0, {0})
    vectors = 4 * FILTERS if kind.startswith("Conv") else 0
    assert report.packed_bytes == added(session) + vectors > vectors
    assert report.route == ROUTE
    check_same(session, stock(twin, level("DISABLE_ALL")))
    if kind != "LSTM":  # which has another kernel for weights that are constant
        check_same(session, stock(data, level("DISABLE_ALL")))
    check_same(create_session(data, quiet(), CPU, options=Options(strict=True)), stock(twin))


@pytest.mark.parametrize("form", FORMS)
def test_by_every_way(form: Form, tmp_path: Path) -> None:
    stored = save(model_of("GRU"), tmp_path, form)
    reference = stock(stored, level("DISABLE_ALL"))
    for buffer in ("file", "memory", "auto"):
        check_same(create_session(stored, quiet(), CPU, options=Options(strict=True, buffer=buffer)), reference)
    by_path = create_session(stored, added_provider(), options=Options(strict=True))
    assert made_report(by_path).route == "by path"
    assert added(by_path) > 0
    check_same(by_path, reference)


@pytest.mark.parametrize("kind", ["Conv", "LSTM"])
@pytest.mark.parametrize("share", [False, True])
def test_from_the_cache(kind: str, share: bool, tmp_path: Path) -> None:
    stored = save(model_of(kind), tmp_path, "file")
    options = Options(strict=True, cache_dir=tmp_path / "cache", share_weights=share)
    reference = stock(stored, with_entries({"session.disable_quant_qdq": "1"}))
    uses = []
    for _ in range(2):
        session = create_session(stored, quiet(), CPU, options=options)
        uses.append(made_report(session).cache)
        assert added(session) > 0
        check_same(session, reference)
    assert uses == ["made", "used"]
    # Another choice is another entry.
    never = create_session(stored, quiet(), CPU, options=Options(cache_dir=tmp_path / "cache", dequantize_once="never"))
    assert (made_report(never).cache, added(never)) == ("", 0)


def test_prepared_elsewhere(tmp_path: Path) -> None:
    stored = save(model_of("GRU"), tmp_path, "external")
    warm(str(stored), options=Options(cache_dir=tmp_path / "prepared"), portable=True)
    session = create_session(stored, quiet(), CPU, options=Options(strict=True, prepared=tmp_path / "prepared"))
    assert (made_report(session).cache, added(session) > 0) == ("prepared", True)
    check_same(session, stock(stored, level("DISABLE_ALL")))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_in_a_subgraph(outside: bool, form: Form, tmp_path: Path) -> None:
    """The node stands in a branch, its weight there or in the graph around it; another branch returns the values of one."""
    draft = Draft("branches")
    draft.input("x", [2, CHANNELS, WIDTH])
    how: dict[str, Any] = {"axis": 0, "block": PER_CHANNEL, "element": "int8", "zero": "none"}
    shape, inputs = (FILTERS, CHANNELS, 3), ["w", "w_s"]
    then, other = Draft(parent=draft), Draft(parent=draft)
    if outside:
        draft.dequantize("w", shape, **how)
        draft.nodes.pop()
        then.node("DequantizeLinear", inputs, "w_d", axis=0)
    else:
        then.dequantize("w", shape, **how)
    then.output(then.node("Conv", ["x", "w_d"], "y1", pads=[1, 1]), None)
    other.dequantize("v", shape, **how)
    other.output(other.node("Conv", ["x", "v_d"], "y2", pads=[1, 1]), None)
    draft.node("ReduceSum", ["x"], "sum", keepdims=0)
    draft.node("Greater", ["sum", draft.scalar("zero", 0.0)], "positive")
    draft.node("If", ["positive"], "y", then_branch=then.graph("then"), else_branch=other.graph("else"))
    draft.output("y", None)
    stored = save(draft.model(), tmp_path, form)
    session = create_session(stored, level("ENABLE_EXTENDED"), CPU, options=Options(strict=True))
    assert added(session) == 2 * FILTERS * CHANNELS * 3 * 4
    reference = stock(stored, level("DISABLE_ALL"))
    for sign in (1, -1):
        x = {"x": np.full((2, CHANNELS, WIDTH), 0.3 * sign, np.float32)}
        np.testing.assert_array_equal(session.run(None, x)[0], reference.run(None, x)[0])


def test_in_branches_of_branches_that_have_the_same_names(tmp_path: Path) -> None:
    """Beside a product that is fused, in each of them."""
    draft = Draft("nested")
    draft.input("x", [2, CHANNELS, WIDTH])
    draft.input("p", ["m", 128])
    draft.node("Greater", [draft.node("ReduceSum", ["x"], "sum", keepdims=0), draft.scalar("zero", 0.0)], "positive")
    branches = {}
    for side in ("then", "else"):
        inner = []
        for _ in range(2):
            branch = Draft(parent=draft)
            branch.dequantize("w", (FILTERS, CHANNELS, 3), axis=0, block=PER_CHANNEL, element="int8", zero="none")
            branch.weight(Weight(), "v")
            branch.node("MatMul", ["p", "v_d"], "q")
            branch.node("ReduceMax", ["q"], "most", keepdims=0)
            branch.output(branch.node("Mul", [branch.node("Conv", ["x", "w_d"], "c", pads=[1, 1]), "most"], "z"), None)
            inner.append(branch.graph(side))
        outer = Draft(parent=draft)
        outer.node("Greater", ["sum", outer.scalar("five", 5.0 if side == "then" else -5.0)], "far")
        outer.weight(Weight(), "u")
        outer.node("MatMul", ["p", "u_d"], "r")
        outer.node("If", ["far"], "i", then_branch=inner[0], else_branch=inner[1])
        outer.output(outer.node("Add", ["i", outer.node("ReduceMax", ["r"], keepdims=0)], "o"), None)
        branches[f"{side}_branch"] = outer.graph(side)
    draft.output(draft.node("If", ["positive"], "y", **branches), None)
    stored = save(draft.model(), tmp_path, "file")
    session = create_session(stored, level("ENABLE_EXTENDED"), CPU, options=Options(strict=True, accuracy_level=0))
    report = made_report(session)
    assert (len(report.fused), added(session)) == (6, 4 * FILTERS * CHANNELS * 3 * 4)
    reference = stock(stored, level("DISABLE_ALL"))
    results = []
    for value in (0.3, 0.01, -0.01, -0.3):
        feeds = {"x": np.full((2, CHANNELS, WIDTH), value, np.float32), "p": np.ones((1, 128), np.float32)}
        results.append(session.run(None, feeds)[0])
        np.testing.assert_allclose(results[-1], reference.run(None, feeds)[0], rtol=1e-4, atol=1e-4)
    assert len({float(result.sum()) for result in results}) == 4


def test_in_a_function() -> None:
    draft = Draft("function")
    draft.input("x", [2, CHANNELS, WIDTH])
    draft.quantized("w", "int8", [FILTERS, CHANNELS, 3])
    draft.floats("w_s", [FILTERS])
    body = [
        helper.make_node("DequantizeLinear", ["a", "s"], ["d"], axis=0),
        helper.make_node("Conv", ["v", "d"], ["o"], pads=[1, 1]),
    ]
    opsets = [helper.make_opsetid("", draft.opset)]
    draft.functions.append(helper.make_function("own", "Filter", ["v", "a", "s"], ["o"], body, opsets))
    draft.output(draft.node("Filter", ["x", "w", "w_s"], "y", domain="own"), None)
    data = draft.model().SerializeToString()
    session = create_session(data, level("ENABLE_EXTENDED"), CPU, options=Options(strict=True))
    assert added(session) == FILTERS * CHANNELS * 3 * 4
    check_same(session, stock(data, level("DISABLE_ALL")))


def both_readers() -> onnx.ModelProto:
    """A weight that a product reads, and a sum."""
    draft = Draft("both")
    draft.input("x", ["m", 128])
    draft.weight(Weight(n=128))
    draft.node("MatMul", ["x", "w_d"], "p")
    draft.output(draft.node("MatMul", ["p", draft.node("Tanh", ["w_d"])], "y"), ["m", 128])
    return draft.model()


def test_beside_a_reader_that_is_fused(tmp_path: Path) -> None:
    data = both_readers().SerializeToString()
    options = level("ENABLE_EXTENDED")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = create_session(data, options, CPU, options=Options(strict=True, accuracy_level=0))
    report = made_report(session)
    assert (len(report.fused), [entry.reason for entry in report.unfused]) == (1, [Reason.CONSUMER])
    assert report.packed_bytes == report.fused[0].packed_bytes + 128 * 128 * 4
    nodes = saved_nodes(tmp_path / "optimized.onnx")
    assert ("MatMulNBits" in nodes, "DequantizeLinear" in nodes) == (True, False)
    (ours,), (theirs,) = outputs(session), outputs(stock(data, level("DISABLE_ALL")))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chosen", ["never", "auto", "always"])
def test_the_option(chosen: Once, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is that of the model's bytes or a constant, whichever is more; here it is neither."""
    monkeypatch.setattr("ort_qdq_plugin.load.plan._ONCE_BYTES", 0)
    data = model_of("Conv").SerializeToString()
    session = create_session(data, quiet(), CPU, options=Options(strict=True, dequantize_once=chosen))
    report = made_report(session)
    # The weight takes more bytes than the model; and its bias alone is not worth it.
    nbytes = FILTERS * CHANNELS * 9 * 4
    (entry,) = report.unfused
    assert (entry.bytes_added, entry.bytes_per_run) == ((nbytes, 0) if chosen == "always" else (0, nbytes))
    assert (entry.reason is Reason.MEMORY) == (chosen == "auto")
    assert (report.stock_reason is None) == (chosen == "always")
    assert "dequantize_once" in str(Reason.MEMORY)


def test_what_switches_fusion_off_switches_this_off() -> None:
    data = model_of("Conv").SerializeToString()
    for options in (level("DISABLE_ALL"), level("ENABLE_BASIC"), with_entries({"session.disable_quant_qdq": "1"})):
        session = create_session(data, options, CPU, options=Options(dequantize_once="always"))
        assert (made_report(session).route, added(session)) == ("stock", 0)


def test_inspect_says_the_same() -> None:
    data = model_of("Conv").SerializeToString()
    report = inspect(data)
    assert report.unfused == made_report(create_session(data, quiet(), CPU)).unfused
    assert "0 fused, 1 dequantized once, " in report.summary()
    said = f"{report.unfused[0].form}: {Reason.CONSUMER} (0.0 MB dequantized once, at load)"
    assert f"  once    w_d_node: {said}" in str(report)
    assert inspect(data, options=Options(dequantize_once="never")).unfused[0].bytes_per_run > 0


def test_an_exported_model_grows_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = str(save(both_readers(), tmp_path, "file"))
    found = {}
    for chosen in ("never", "auto", "always"):
        out = tmp_path / f"{chosen}.onnx"
        report = export(path, out, options=Options(dequantize_once=chosen, accuracy_level=0))
        found[chosen] = ("DequantizeLinear" in saved_nodes(out), sum(entry.bytes_added for entry in report.unfused))
        (ours,), (theirs,) = outputs(stock(str(out))), outputs(stock(path, level("DISABLE_ALL")))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert found == {"never": (True, 0), "auto": (True, 0), "always": (False, 128 * 128 * 4)}
