"""Reports: what they say and in which form."""

import copy
import dataclasses
import inspect
import json
import pickle
import sys
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, Reason, Report, StockReason, UnfusedWeight, create_session
from ort_qdq_plugin.report.weights import HINTS
from ort_qdq_plugin.values import replace
from tests.support import linear, made_report, mixed, save

STAGES = ["open", "match", "plan", "pack", "assemble", "create session"]


def test_what_was_fused_and_what_was_not() -> None:
    report = made_report(create_session(mixed()))
    (fusion,) = report.fused
    assert (fusion.node, fusion.dequantize, fusion.kind) == ("p_node", "w_d_node", "MatMul")
    assert (fusion.k, fusion.n, fusion.bits, fusion.block_size, fusion.layout) == (128, 64, 4, 32, "K-major")
    assert fusion.packed_bytes == 128 * 64 // 2 + 4 * 64 * 4 + 4 * 64 // 2
    assert (fusion.borrowed_bytes, fusion.stored_bytes, fusion.has_bias) == (0, fusion.packed_bytes, False)
    assert (report.packed_bytes, report.borrowed_bytes) == (fusion.packed_bytes + 64 * 4, 0)
    (unfused,) = report.unfused
    assert (unfused.dequantize, unfused.weight, unfused.reason) == ("b_d_node", "b", Reason.CONSUMER)
    assert (unfused.shape, unfused.bits, unfused.block_size) == ((1, 64), 8, 0)
    assert (unfused.stored_bytes, unfused.bytes_per_run, unfused.bytes_added) == (64 + 4 + 1, 0, 64 * 4)
    assert (report.route, report.stock_message) == ("borrowed", None)
    assert sorted(report.seconds) == sorted(STAGES)
    assert all(seconds >= 0 for seconds in report.seconds.values())


def test_borrowed_bytes_are_counted() -> None:
    report = made_report(create_session(save(linear(Weight(n_major=True)), Path(), "bytes")))
    assert report.packed_bytes == 0
    assert report.borrowed_bytes == 128 * 64 // 2 + 4 * 64 * 4 + 4 * 64 // 2
    assert report.fused[0].layout == "N-major"


def test_weights_of_2_bits_that_are_fused_as_4() -> None:
    report = made_report(create_session(linear(Weight("uint2", n_major=True)).SerializeToString()))
    (fusion,) = report.fused
    assert (fusion.bits, fusion.stored_bits) == (4, 2)
    assert (fusion.stored_bytes, fusion.borrowed_bytes) == (128 * 64 // 4 + 4 * 64 * 4 + 4 * 64 // 4, 4 * 64 * 4)
    assert report.packed_bytes == fusion.packed_bytes == 128 * 64 // 2 + 4 * 64 // 2
    assert "4 bits (stored 2), block 32" in str(report)


def test_unnamed_nodes_go_by_their_output() -> None:
    model = linear(Weight())
    for node in model.graph.node:
        node.name = ""
    (fusion,) = made_report(create_session(model.SerializeToString())).fused
    assert (fusion.node, fusion.dequantize) == ("y", "w_d")


def test_in_every_form() -> None:
    report = made_report(create_session(mixed()))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["fused"][0]["node"] == "p_node"
    assert plain["unfused"][0]["reason"] == str(Reason.CONSUMER)
    assert plain["seconds"].keys() == report.seconds.keys()
    text = str(report)
    assert "p_node" in text
    assert "b_d_node" in text
    assert str(Reason.CONSUMER) in text
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize("reasons", [Reason, StockReason])
def test_reasons_are_sentences(reasons: type[Enum]) -> None:
    for reason in reasons:
        assert str(reason).endswith(".")
        assert str(reason)[0].isupper()
    assert len({str(reason) for reason in reasons}) == len(reasons)


def test_a_model_that_is_left_to_stock() -> None:
    report = Report("stock", StockReason.PROVIDER, "QNN")
    message = "An execution provider of the session is not known to take fused nodes, so that it gets the QDQ form: QNN"
    assert report.stock_message == message
    assert str(report) == f"stock ONNX Runtime: {message}"
    plain = json.loads(json.dumps(report.to_dict()))
    assert (plain["stock_reason"], plain["stock_detail"]) == (str(StockReason.PROVIDER), "QNN")
    assert Report("stock", StockReason.NOT_QUANTIZED).stock_message == str(StockReason.NOT_QUANTIZED)


def test_what_would_help() -> None:
    assert set(HINTS) < set(Reason)
    assert all(hint[0].isupper() and hint.endswith(".") for hint in HINTS.values())
    made = UnfusedWeight("d", "w", Reason.BLOCKS_ALONG_N, (64, 64), 4, 32, 2048, 16384, form="int4 [64, 64], per tensor")
    (plain,) = Report("stock", unfused=(made,)).to_dict()["unfused"]
    assert (plain["hint"], plain["form"]) == (HINTS[Reason.BLOCKS_ALONG_N], made.form)
    text = str(Report("stock", unfused=(made,)))
    assert f"{made.form}: {Reason.BLOCKS_ALONG_N} (0.0 MB dequantized per run) {made.hint}" in text
    assert UnfusedWeight("d", "w", Reason.FOLDED, (64, 64), 4, 32, 2048, 0).hint == ""


def test_a_value_is_a_data_class_to_whoever_asks() -> None:
    report = Report("stock", StockReason.ERROR, seconds={"open": 1.0})
    assert [field.name for field in dataclasses.fields(Report)] == list(inspect.signature(Report).parameters)
    assert inspect.signature(Options).parameters["buffer"].default == "auto"
    assert dataclasses.is_dataclass(report)
    assert dataclasses.replace(report, route="inspect") == Report("inspect", StockReason.ERROR, seconds={"open": 1.0})
    assert dataclasses.asdict(report)["stock_reason"] is StockReason.ERROR
    for same in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report), pickle.loads(pickle.dumps(Report("stock")))):
        assert type(same.seconds) is dict
        assert same in (report, Report("stock"))


def test_a_value_takes_its_fields_only_and_keeps_them() -> None:
    wrong: list[tuple[Any, Any, str]] = [
        ((), {}, "misses route"),
        (("stock",), {"route": "stock"}, "got route twice, by its place and by its name"),
        (("stock",), {"rout": 1}, "got an unexpected keyword argument 'rout'"),
        (("stock",) * 20, {}, "takes 16 values at most, and got 20"),
    ]
    for positional, named, said in wrong:
        with pytest.raises(TypeError, match=rf"^Report\(\) {said}$"):
            Report(*positional, **named)
    report = Report("stock")
    with pytest.raises(dataclasses.FrozenInstanceError, match="route"):
        report.route = "inspect"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="route"):
        del report.route
    assert report == Report(route="stock")


class Plain(Options):
    """A class of a user, which adds nothing."""


class More(Options):
    """One with a default of its own, a field, and what is none."""

    strict: bool = True
    note: str = ""
    known: ClassVar[int]


@dataclasses.dataclass(frozen=True)
class Decorated(Options):
    """One that is a data class."""

    note: str = ""


class Constructed(Options):
    """One with a constructor of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(cache_dir=folder / "cache")


class Noted(Report):
    """A report with a method more."""

    def note(self) -> str:
        return f"{self.route}!"


def test_a_value_can_be_the_base_of_a_class(tmp_path: Path) -> None:
    assert vars(Plain(3, strict=True)) == vars(Options(3, strict=True))
    assert inspect.signature(Plain) == inspect.signature(Options)
    assert dataclasses.fields(Plain)[0].name == "accuracy_level"
    assert (More().strict, More(note="n").note, Options().strict) == (True, "n", False)
    assert list(inspect.signature(More).parameters) == [*inspect.signature(Options).parameters, "note"]
    decorated = Decorated(threads=2, note="n")
    assert (decorated, decorated.note) == (dataclasses.replace(decorated), "n")
    assert list(inspect.signature(Constructed).parameters) == ["folder"]
    assert Noted("stock").note() == "stock!"
    for value in (Plain(3, strict=True), More(threads=2), decorated, Constructed(tmp_path)):
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == replace(value, block_size=None)
        assert type(replace(value, threads=3)) is type(value)
        assert replace(value, threads=3).threads == 3
    for kind in (Plain, More, Decorated):
        with pytest.raises(ValueError, match=r"^accuracy_level is 9, must be"):
            kind(accuracy_level=9)
        with pytest.raises(ValueError, match=r"^accuracy_level is 9, must be"):
            replace(kind(), accuracy_level=9)
    with pytest.raises(TypeError, match=r"^Plain\(\) has no option treads: did you mean threads\?$"):
        Plain(treads=1)  # type: ignore[call-arg]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace came with Python 3.13")
def test_a_value_can_be_replaced_by_copy() -> None:
    assert vars(copy)["replace"](Options(3), threads=2) == Options(3, threads=2)
