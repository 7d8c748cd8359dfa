"""The first look at a model: it says what the whole way would say, or nothing."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason
from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.load import first_look as module
from ort_qdq_plugin.load.first_look import Nothing, first_look
from ort_qdq_plugin.load.open import check_fusible, glance_at, open_model
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model import places
from ort_qdq_plugin.model.wire import Copied, without_large_tensors
from ort_qdq_plugin.ort.hook import CreateCall
from tests.load.test_open import NO_QDQ, integers
from tests.model.test_glance import dynamic, product
from tests.support import descriptors, linear, save, settled_descriptors, unquantized

MODELS = {
    "unquantized": unquantized(),
    "quantized throughout": product(),
    "in part": product(quantized=False),
    "dynamically": dynamic(),
    "dynamically, and a weight": dynamic("MatMul"),
    "integers": onnx.ModelProto.FromString(integers("MatMulInteger")),
    "by hand": onnx.ModelProto.FromString(integers("Cast", to=1)),
    "weights": linear(Weight()),
}


def look(model: str | bytes, session_options: Any = None, options: Options | None = None) -> Nothing | Copied | None:
    return first_look(model, session_options, CreateCall(None, None, None), options)


def the_whole_way(model: str | bytes, session_options: Any) -> LeaveToStock | None:
    request = LoadRequest(model, session_options, Options())
    with closing(open_model(request)) as skeleton:
        try:
            check_fusible(skeleton, request)
            glance_at(skeleton, request)
        except LeaveToStock as stock:
            return stock
    return None


@pytest.mark.parametrize("form", ["file", "bytes"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("session_options", [None, NO_QDQ], ids=["plain", "no QDQ"])
def test_says_what_the_whole_way_would_say(name: str, form: Any, session_options: Any, tmp_path: Path) -> None:
    model = save(MODELS[name], tmp_path, form)
    before = settled_descriptors()
    stock, found = the_whole_way(model, session_options), look(model, session_options)
    assert descriptors() == before
    if isinstance(found, Nothing):
        assert stock is not None
        assert (StockReason[found.reason], found.detail) == (stock.reason, stock.detail)
        assert found.is_listed == (stock.reason is StockReason.NOT_FUSIBLE)
    else:
        assert stock is None or stock.reason is StockReason.FUSION_DISABLED


def test_finds_something_to_do_and_nothing_where_it_should() -> None:
    found = {name: look(model.SerializeToString()) for name, model in MODELS.items()}
    assert {name for name, seen in found.items() if isinstance(seen, Copied)} == {
        "in part", "dynamically, and a weight", "by hand", "weights",
    }  # fmt: skip
    assert not [name for name, seen in found.items() if seen is None]


def test_options_for_what_stock_fuses() -> None:
    throughout, unquantized_model = MODELS["quantized throughout"], MODELS["unquantized"]
    for options in (Options(accuracy_level=0), Options(block_size=64)):
        assert look(throughout.SerializeToString(), options=options) is None
        assert isinstance(look(unquantized_model.SerializeToString(), options=options), Nothing)


def test_leaves_to_others_what_a_look_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = unquantized().SerializeToString()
    (tmp_path / "model.ort").write_bytes(data)
    (tmp_path / "cut.onnx").write_bytes(data[:-3])
    (tmp_path / "empty.onnx").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.onnx")
    for name in ("model.ort", "cut.onnx", "empty.onnx", "fifo.onnx", "missing.onnx", "", "nul\0.onnx"):
        assert look(str(tmp_path / name)) is None
    for model in (b"", b"\x00\x00\x00\x00ORTM and more", data[:-3]):
        assert look(model) is None
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    assert look(data) is None


def large() -> onnx.ModelProto:
    """A model with a weight of 64 KiB."""
    draft = Draft("large")
    draft.input("x", [1, 128])
    draft.output(draft.node("MatMul", ["x", draft.floats("w", (128, 128))], "y"), [1, 128])
    return draft.model()


@pytest.mark.parametrize("form", ["file", "bytes", "external"])
def test_what_is_worth_handing_over(form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save(large(), tmp_path, form)
    if isinstance(model, str):
        os.utime(model, (0, 0))
    assert isinstance(look(model), Nothing)
    monkeypatch.setattr(module, "UNCHANGED_BYTES", 1 << 16)
    assert isinstance(look(model), Copied)
    # What `places` refuses stays with ONNX Runtime.
    monkeypatch.setattr(places, "_LOOPS", (b"MatMul",))
    assert isinstance(look(model), Nothing)
    monkeypatch.setattr(module, "UNCHANGED_BYTES", (1 << 16) + 500)
    assert isinstance(look(model), Nothing)


def test_a_file_that_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(unquantized().SerializeToString())

    def cut(source: Any, location: str) -> bytes:
        path.write_bytes(b"")
        return without_large_tensors(source, location)

    monkeypatch.setattr(module, "without_large_tensors", cut)
    assert look(str(path)) is None


@pytest.mark.parametrize("form", ["file", "bytes"])
def test_what_it_has_copied_is_not_copied_again(form: Any, tmp_path: Path) -> None:
    model = save(MODELS["weights"], tmp_path, form)
    if isinstance(model, str):
        assert look(model) is None  # which may be written again before its clock moves
        os.utime(model, (0, 0))
    copied = look(model)
    assert isinstance(copied, Copied)
    request = LoadRequest(model, None, Options(), copied=copied)
    with closing(open_model(request)) as skeleton:
        assert skeleton.data is copied.data
        glance_at(skeleton, request)
    if isinstance(model, str):
        # A file that took its path meanwhile, and the same one with other bytes.
        for way in (os.replace, None):
            other = unquantized().SerializeToString()
            (tmp_path / "other").write_bytes(other)
            if way is None:
                Path(model).write_bytes(other)
            else:
                way(tmp_path / "other", model)
            with closing(open_model(request)) as skeleton:
                assert skeleton.data == other
