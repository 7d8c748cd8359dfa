"""options.md: reports and errors."""

import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_TENSOR, Weight
from ort_qdq_plugin import (
    ModelError,
    Options,
    QdqPluginError,
    Report,
    SourceChangedError,
    SourceUnreadableError,
    StockReason,
    create_session,
    export,
    inspect,
    report_of,
)  # fmt: skip
from ort_qdq_plugin.load import pack as pack_stage
from ort_qdq_plugin.report import Route
from tests.claims.pages import rows_below
from tests.claims.registry import claim
from tests.support import (
    CPU,
    ROUTE,
    added_provider,
    linear,
    made_report,
    quiet,
    stock,
    unquantized,
)  # fmt: skip

PAGE = "docs/options.md"


@claim(PAGE, "For a session that this package did not create it is `None`.")
def test_sessions_of_others_have_no_report(small: str) -> None:
    assert report_of(stock(small)) is None
    assert isinstance(report_of(create_session(small, quiet(), CPU)), Report)


@claim(PAGE, "It raises `ModelError` or `OSError` if the model cannot be opened.")
def test_what_inspect_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError):
        inspect(linear(Weight()).SerializeToString()[:-10])


@claim(PAGE, "because elements of 4 bits need opset 21, the `stock_reason` is `REFUSED` and nothing is fused")
@claim(PAGE, "`inspect(..., check=False)` does not ask ONNX Runtime")
def test_models_that_onnx_runtime_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear(Weight())
    model.opset_import[0].version = 20
    report = inspect(model.SerializeToString())
    assert (report.stock_reason, report.fused) == (StockReason.REFUSED, ())
    monkeypatch.setattr(ort.capi.onnxruntime_pybind11_state, "InferenceSession", None)
    unasked = inspect(model.SerializeToString(), check=False)
    assert unasked.stock_reason is not StockReason.REFUSED
    assert "check" not in unasked.seconds


@claim(PAGE, "Operators of custom-op libraries are taken to be there.")
def test_operators_of_libraries() -> None:
    model = linear(Weight())
    model.graph.node[-1].output[0] = "h"
    model.graph.node.add(op_type="Mine", domain="my.own", input=["h"], output=["y"])
    model.opset_import.add(domain="my.own", version=1)
    assert len(inspect(model.SerializeToString()).fused) == 1


def routes(model: str, folder: Path) -> dict[str, Report]:
    """A report of each route but "copied", which only older releases take."""

    def session(settings: ort.SessionOptions | None = None, of: str | bytes = model, **options: Any) -> Report:
        return made_report(create_session(of, settings or quiet(), options=Options(strict=True, **options)))

    shares: dict[str, Any] = {"cache_dir": folder / "cache", "share_weights": True}
    return {
        ROUTE: session(), "by path": session(added_provider()), "shared": session(**shares),
        "stock": session(of=unquantized().SerializeToString()), "export": export(model, folder / "fused.onnx"),
        "inspect": inspect(model),
    }  # fmt: skip


@claim(
    PAGE,
    "of each stage: cache, open, match, plan, check (`inspect` only), pack, assemble, share and create session.",
)
@claim(PAGE, '| `"by path"` | it maps the same bytes itself, as files: `route_reason` says why |')
def test_routes_and_stages(large: str, tmp_path: Path) -> None:
    reports = routes(large, tmp_path)
    assert {route: report.route for route, report in reports.items()} == {route: route for route in reports}
    assert {*get_args(Route)} - {*reports} <= {"copied", "borrowed"}
    assert {route for route, report in reports.items() if report.route_reason is not None} == {"by path"}
    stages = {stage for report in reports.values() for stage in report.seconds}
    assert stages == {"cache", "open", "match", "plan", "check", "pack", "assemble", "share", "create session"}
    assert ["check" in report.seconds for report in reports.values()] == [route == "inspect" for route in reports]
    assert reports["shared"].shared_bytes > 0


@claim(
    PAGE,
    "`report.summary()` is its first line, and `report.to_dict()` goes into JSON, with reasons as",
)
@claim(PAGE, "Reports and their entries are frozen dataclasses.")
def test_reports_as_values(mixed_model: str) -> None:
    report = inspect(mixed_model)
    assert str(report).splitlines()[0] == report.summary()
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["unfused"][0]["reason"] == str(report.unfused[0].reason)
    for value, name in ((report, "route"), (report.fused[0], "k"), (report.unfused[0], "bits")):
        assert is_dataclass(value)
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 0)


@claim(PAGE, "Vectors are left out: the biases and the scales of norms that quantizers write |")
def test_vectors_are_left_out() -> None:
    model = linear(Weight())
    model.graph.node[-1].output[0] = "h"
    draft = Draft("bias")
    draft.dequantize("b", (64,), axis=0, block=PER_TENSOR, element="int8", zero="none")
    model.graph.node.extend(draft.nodes)
    model.graph.initializer.extend(draft.initializers)
    model.graph.node.add(op_type="Mul", input=["h", "b_d"], output=["y"], name="scaled")
    report = inspect(model.SerializeToString())
    assert (len(report.fused), report.unfused) == (1, ())


@claim(PAGE, "| `packed_bytes`, `borrowed_bytes` | of the whole model, each operand counted once;")
def test_bytes_count_once() -> None:
    draft = Draft("twice")
    x, weight = draft.input("x", ["m", 128]), draft.weight(Weight())
    for name in "yz":
        draft.output(draft.node("MatMul", [x, weight], name), ["m", 64])
    once, twice = inspect(linear(Weight()).SerializeToString()), inspect(draft.model().SerializeToString())
    assert (len(twice.fused), twice.packed_bytes) == (2, once.packed_bytes)


@claim(PAGE, "| class | meaning |")
@claim("docs/robustness.md", "It is an `OSError` too.")
def test_errors() -> None:
    told = [re.findall(r"`(\w+)`", row[0])[0] for row in rows_below(PAGE, "| class | meaning |")]
    classes = {error.__name__: error for error in (QdqPluginError, ModelError, SourceChangedError, SourceUnreadableError)}
    assert told == [*classes]
    assert all(issubclass(error, QdqPluginError) for error in classes.values())
    assert issubclass(SourceUnreadableError, OSError)


@claim(PAGE, "in strict mode also the wrapper of an `ImportError`, a `ValueError` or a `RuntimeError`, its cause")
@claim(PAGE, "What goes wrong before a session exists is a warning by default, and an exception in strict mode.")
def test_what_goes_wrong(small: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for kind, raises in {
        ImportError: QdqPluginError,
        ValueError: QdqPluginError,
        RuntimeError: QdqPluginError,
        OSError: OSError,
        KeyError: KeyError,
    }.items():

        def breaking(*_: object, kind: Callable[[str], BaseException] = kind, **__: object) -> None:
            raise kind("it broke")

        monkeypatch.setattr(pack_stage, "pack", breaking)
        with pytest.raises(raises) as caught:
            create_session(small, quiet(), CPU, options=Options(strict=True))
        assert type(caught.value.__cause__ if raises is QdqPluginError else caught.value) is kind
        caplog.clear()
        assert made_report(create_session(small, quiet(), CPU)).stock_reason is StockReason.ERROR
        assert len(caplog.records) == 1


@claim(PAGE, "loads without their library being registered: text in, embedding out, in one graph")
def test_operators_of_the_extensions() -> None:
    pytest.importorskip("onnxruntime_extensions")
    model = linear(Weight())
    draft = Draft("text")
    draft.node("StringUpper", ["text"], "upper", domain="ai.onnx.contrib")
    model.graph.node.extend(draft.nodes)
    model.graph.input.add(name="text").type.tensor_type.elem_type = 8
    model.graph.output.add(name="upper").type.tensor_type.elem_type = 8
    for value in (model.graph.input[-1], model.graph.output[-1]):
        value.type.tensor_type.shape.dim.add(dim_value=1)
    model.opset_import.add(domain="ai.onnx.contrib", version=1)
    data = model.SerializeToString()
    with pytest.raises(Exception, match=r"ai\.onnx\.contrib"):
        stock(data)
    session = create_session(data, quiet(), CPU, options=Options(strict=True))
    assert len(made_report(session).fused) == 1
    text = {"text": np.array(["abc"]), "x": np.zeros((1, 128), np.float32)}
    assert session.run(["upper"], text)[0] == ["ABC"]
