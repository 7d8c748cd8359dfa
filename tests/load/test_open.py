"""Opening a model: what goes to stock at first sight, and what is closed again then."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason
from ort_qdq_plugin.errors import LeaveToStock, ModelError, NothingToDo
from ort_qdq_plugin.load.open import check_fusible, glance_at, leave_unreadable_to_stock, open_model
from ort_qdq_plugin.load.request import LoadRequest
from tests.model.test_glance import dynamic, product
from tests.support import descriptors, linear, refusing, settled_descriptors, unquantized, with_entries


def asked(model: str | bytes, session_options: Any = None, **others: Any) -> LoadRequest:
    return LoadRequest(model, session_options, Options(), **others)


def check(request: LoadRequest) -> None:
    """Open a model and look at it, as a load does at first."""
    with closing(open_model(request)) as skeleton:
        check_fusible(skeleton, request)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(linear(Weight()).SerializeToString())
    return path


def is_left_to_stock(request: LoadRequest, reason: StockReason, detail: str = "") -> None:
    """Check that the model is not opened, or closed again, also while somebody keeps the error."""
    before = settled_descriptors()
    with pytest.raises(LeaveToStock) as kept:
        check(request)
    assert (kept.value.reason, kept.value.detail) == (reason, detail)
    assert descriptors() == before
    assert kept.tb is not None


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_quantized_model_is_opened(path: Path, as_bytes: bool) -> None:
    with closing(open_model(asked(path.read_bytes() if as_bytes else str(path)))) as skeleton:
        assert skeleton.mentions("DequantizeLinear")
        assert skeleton.source.size == path.stat().st_size


def integers(op: str, **attributes: Any) -> bytes:
    """A model with stored integers that an operator reads, and a Mul of what that makes of them."""
    draft = Draft("integers")
    draft.quantized("w", "int8", (64, 48))
    draft.node("Mul", [draft.node(op, ["w"], "c", **attributes), draft.floats("s", (48,))], "y")
    data: bytes = draft.model().SerializeToString()
    return data


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_model_that_dequantizes_by_hand_is_opened(path: Path, as_bytes: bool) -> None:
    path.write_bytes(integers("Cast", to=1))
    with closing(open_model(asked(path.read_bytes() if as_bytes else str(path)))) as skeleton:
        assert not skeleton.mentions("DequantizeLinear")


NO_QDQ = with_entries({"session.disable_quant_qdq": "1"})
AS_ORT = with_entries({"session.load_model_format": "ORT"})
TO_STOCK: dict[str, tuple[dict[str, Any], StockReason, str]] = {
    "a key": ({"session_options": AS_ORT}, StockReason.ORT_FORMAT, "session.load_model_format is ORT"),
    "a path": ({"model": "/no/such/model.ort"}, StockReason.ORT_FORMAT, ""),
    "bytes": ({"model": b"\x00\x00\x00\x00ORTM and more"}, StockReason.ORT_FORMAT, ""),
    "a model": ({"model": unquantized().SerializeToString()}, StockReason.NOT_QUANTIZED, ""),
    "integers that are no weight": ({"model": integers("Relu")}, StockReason.NOT_QUANTIZED, ""),
    "integers that are multiplied as such": (
        {"model": integers("MatMulInteger")},
        StockReason.OTHER_FORM,
        "dynamically quantized (MatMulInteger): runs on integer kernels",
    ),
    "weights that are written out, with QDQ switched off": (
        {"model": integers("Cast", to=1), "session_options": NO_QDQ},
        StockReason.FUSION_DISABLED,
        "session.disable_quant_qdq is 1",
    ),
    "QDQ that is switched off": ({"session_options": NO_QDQ}, StockReason.FUSION_DISABLED, "session.disable_quant_qdq is 1"),
}


@pytest.mark.parametrize("name", TO_STOCK)
def test_what_goes_to_stock(path: Path, name: str) -> None:
    given, reason, detail = TO_STOCK[name]
    is_left_to_stock(asked(str(path))._replace(**given), reason, detail)


def test_what_goes_to_stock_is_closed(path: Path) -> None:
    path.write_bytes(unquantized().SerializeToString())
    is_left_to_stock(asked(str(path)), StockReason.NOT_QUANTIZED)


def test_session_options_in_the_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(path)
    helper.set_model_props(model, {"ort_config": "{}"})
    onnx.save(model, path)
    check(asked(str(path)))
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    is_left_to_stock(asked(str(path)), StockReason.OPTIONS_IN_MODEL)


@pytest.mark.parametrize(("operator", "domain"), [
    ("MatMulNBits", "com.microsoft"), ("GatherBlockQuantized", "com.microsoft"), ("QMoE", "com.microsoft"),
    ("Some", "ai.onnx.contrib"),
])  # fmt: skip
def test_models_that_gain_by_the_hand_over_alone(operator: str, domain: str) -> None:
    model = unquantized()
    model.graph.node[0].op_type, model.graph.node[0].domain = operator, domain
    check(asked(model.SerializeToString(), NO_QDQ))


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_model(asked(str(tmp_path / "nowhere.onnx")))
    os.mkfifo(tmp_path / "fifo.onnx")
    with refusing("regular"):
        open_model(asked(str(tmp_path / "fifo.onnx")))
    with refusing("empty"):
        open_model(asked(b""))


@pytest.mark.parametrize("error", [ModelError("the reason"), OSError("the reason"), KeyError("the reason")])
def test_errors_of_opening_are_for_stock_to_complain_about(error: Exception) -> None:
    wanted = KeyError if isinstance(error, KeyError) else LeaveToStock
    with pytest.raises(wanted, match="the reason"), leave_unreadable_to_stock():
        raise error


def test_a_glance_tells_what_is_quantized_throughout() -> None:
    model = product()
    with closing(open_model(asked(model.SerializeToString()))) as skeleton, pytest.raises(NothingToDo, match="activations"):
        glance_at(skeleton, asked(b""))


def test_a_glance_says_in_which_way_a_model_is_quantized() -> None:
    data = dynamic().SerializeToString()
    with (
        closing(open_model(asked(data))) as skeleton,
        pytest.raises(NothingToDo, match=r"\(DynamicQuantizeLinear, MatMulInt"),
    ):
        glance_at(skeleton, asked(b""))


@pytest.mark.parametrize("operator", ["MatMulNBits", "GatherBlockQuantized", "QMoE", "", None])
def test_a_glance_passes_everything_else(operator: str | None) -> None:
    """None: a model without quantized activations."""
    model = linear(Weight()) if operator is None else product()
    if operator is not None:
        domain = "com.microsoft" if operator else "ai.onnx.contrib"
        model.graph.node.append(helper.make_node(operator or "Op", ["some"], ["value"], domain=domain))
    with closing(open_model(asked(model.SerializeToString()))) as skeleton:
        glance_at(skeleton, asked(b""))
