"""What is asked for: whose settings count."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.system.platform import host
from tests.support import linear, refusing, saved_nodes, with_entries

KEYS = {
    "accuracy_level": "session.qdq_matmulnbits_accuracy_level",
    "block_size": "session.qdq_matmulnbits_block_size",
}
NO_QDQ = "session.disable_quant_qdq"
DISABLED = "optimization.disable_specified_optimizers"
FUSES = "QDQSelectorActionTransformer"


def asked(entries: dict[str, str], *disabled: str, **options: Any) -> LoadRequest:
    return LoadRequest("model.onnx", with_entries(entries), Options(**options), disabled_optimizers=frozenset(disabled))


def test_without_session_options() -> None:
    request = LoadRequest("model.onnx", None, Options())
    assert (request.accuracy_level, request.block_size, request.may_fuse) == (4, 0, True)


# What is asked for, its entry in the session options, the option of this package, and what counts; None: it is refused.
@pytest.mark.parametrize(("setting", "entry", "ours", "wanted"), [
    *(("accuracy_level", *row) for row in [
        (None, None, 4), ("", None, None), ("", 4, 4), ("1", None, 1),
        (" 2", None, None), ("+2", None, None), ("1", 2, 2), (None, 0, 0), ("9", 3, 3),
        ("-1", None, None), ("5", None, None), ("four", None, None), ("1.0", None, None),
    ]),
    *(("block_size", *row) for row in [
        (None, None, 0), ("", None, None), ("1_6", None, None), ("-1", None, -1), ("64", 16, 16), ("64", None, 64),
        ("-2", None, None), ("8", None, None), ("48", None, None), ("512", None, None), ("large", None, None),
    ]),
])  # fmt: skip
def test_whose_setting_counts(setting: str, entry: str | None, ours: int | None, wanted: int | None) -> None:
    request = asked({} if entry is None else {KEYS[setting]: entry}, **{setting: ours})
    with refusing(KEYS[setting] if wanted is None else None):
        assert getattr(request, setting) == wanted


@pytest.mark.parametrize(("facts", "arm", "float16"), [
    ("x86_64 fpu sse", False, True), ("aarch64 fp asimd fphp asimdhp", True, True), ("aarch64 fp asimd crc32", True, False),
    ("arm64", True, True),  # where the system does not say which instructions there are
])  # fmt: skip
def test_processors_without_float16(facts: str, arm: bool, float16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "processor", lambda: facts)
    monkeypatch.setattr(host, "is_arm", lambda: arm)
    assert asked({}).float16 == float16


@pytest.mark.parametrize(
    ("level", "may_fuse"), [("DISABLE_ALL", False), ("ENABLE_BASIC", False), ("ENABLE_EXTENDED", True), ("ENABLE_ALL", True)]
)
def test_levels_of_optimization(level: str, may_fuse: bool) -> None:
    request = asked({})
    assert request.session_options is not None
    request.session_options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    assert request.may_fuse == may_fuse


@pytest.mark.parametrize(("entry", "disabled", "may_fuse"), [
    ("0", (), True), ("1", (), False), ("", ("ConstantFolding",), True),
    ("", ("ConstantFolding", "QDQSelectorActionTransformer"), False),
])  # fmt: skip
def test_qdq_and_optimizers_that_are_switched_off(entry: str, disabled: tuple[str, ...], may_fuse: bool) -> None:
    assert asked({NO_QDQ: entry}, *disabled).may_fuse == may_fuse


# Names in the entry, and those of the constructor's argument, of which there are any or the entry counts.
@pytest.mark.parametrize(
    "entry", ["", ";", FUSES, f"ConstantFolding;{FUSES}", f"{FUSES};", f"a;;{FUSES}", f"a; {FUSES}", f"{FUSES},a"]
)
@pytest.mark.parametrize("argument", [(), ("ConstantFolding",), (FUSES,)])
def test_optimizers_are_switched_off_as_in_onnx_runtime(entry: str, argument: tuple[str, ...], tmp_path: Path) -> None:
    options = with_entries({DISABLED: entry})
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(linear(Weight()).SerializeToString(), options, disabled_optimizers=list(argument))
    stock_fuses = "MatMulNBits" in saved_nodes(tmp_path / "optimized.onnx")
    assert asked({DISABLED: entry}, *argument).may_fuse == stock_fuses


def test_entries_are_those_that_this_package_was_asked_for() -> None:
    entries = {KEYS["accuracy_level"]: "2", KEYS["block_size"]: "64"}
    assert asked(entries).entries == asked({}).entries == {}
    assert asked(entries, accuracy_level=0).entries == {KEYS["accuracy_level"]: "0"}
    assert asked({}, accuracy_level=1, block_size=-1).entries == {KEYS["accuracy_level"]: "1", KEYS["block_size"]: "-1"}
    for value in ("9", "", "x", " 2"):
        # ONNX Runtime refuses it, and is to say so.
        refused = asked({KEYS["accuracy_level"]: value}, accuracy_level=1, block_size=64)
        assert refused.entries == {KEYS["block_size"]: "64"}


def test_one_thread_where_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many it is otherwise is tested with the options."""
    monkeypatch.setattr(host, "memory_is_limited", lambda: True)
    assert (asked({}).threads, asked({}, threads=5).threads) == (1, 5)
