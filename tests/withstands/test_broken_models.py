"""Broken models and data files: what stock ONNX Runtime says is what the user hears, and nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import Options, Report, create_session, inspect
from tests.support import (
    CPU,
    added_provider,
    descriptors,
    external_tensor,
    linear,
    made_report,
    quiet,
    save,
    settled_descriptors,
    stock,
    x_of,
)
from tests.withstands.outcomes import assert_like, outcome, unoptimized

Change = Callable[[onnx.ModelProto, Path], None]


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def dequantize(model: onnx.ModelProto) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    return node


def entry(name: str, **entries: str) -> Change:
    return lambda model, _: void(external_tensor(model, name, **entries))


def dims(name: str, *sizes: int) -> Change:
    def change(model: onnx.ModelProto, _: Path) -> None:
        del tensor(model, name).dims[:]
        tensor(model, name).dims.extend(sizes)

    return change


def data_type(name: str, kind: int) -> Change:
    return lambda model, _: setattr(tensor(model, name), "data_type", kind)


def attribute(name: str, value: int | None) -> Change:
    def change(model: onnx.ModelProto, _: Path) -> None:
        node = dequantize(model)
        kept = [attr for attr in node.attribute if attr.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))

    return change


def inputs(*names: str) -> Change:
    def change(model: onnx.ModelProto, _: Path) -> None:
        del dequantize(model).input[:]
        dequantize(model).input.extend(names)

    return change


def no_initializer(name: str) -> Change:
    return lambda model, _: model.graph.initializer.remove(tensor(model, name))


def truncated(nbytes: int) -> Change:
    return lambda _, folder: os.truncate(folder / "model.data", nbytes)


def void(_: object) -> None:
    return None


def absolute(model: onnx.ModelProto, folder: Path) -> None:
    external_tensor(model, "w", location=str(folder / "model.data"))


def parent(model: onnx.ModelProto, folder: Path) -> None:
    (folder.parent / "outside.data").write_bytes((folder / "model.data").read_bytes())
    external_tensor(model, "w", location="../outside.data")


def back_again(model: onnx.ModelProto, folder: Path) -> None:
    external_tensor(model, "w", location=f"../{folder.name}/model.data")


def link_outside(model: onnx.ModelProto, folder: Path) -> None:
    (folder.parent / "outside.data").write_bytes((folder / "model.data").read_bytes())
    (folder / "link.data").symlink_to(folder.parent / "outside.data")
    external_tensor(model, "w", location="link.data")


def link_inside(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "link.data").symlink_to("model.data")
    external_tensor(model, "w", location="link.data")


def directory(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "sub").mkdir()
    external_tensor(model, "w", location="sub")


def fifo(model: onnx.ModelProto, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    external_tensor(model, "w", location="fifo")


def device(model: onnx.ModelProto, _: Path) -> None:
    external_tensor(model, "w", location="/dev/zero")


def twice_the_location(model: onnx.ModelProto, _: Path) -> None:
    tensor(model, "w").external_data.add(key="location", value="elsewhere.data")


def no_location(model: onnx.ModelProto, _: Path) -> None:
    del tensor(model, "w").external_data[:]


def duplicate_initializer(model: onnx.ModelProto, _: Path) -> None:
    model.graph.initializer.append(tensor(model, "w"))


def duplicate_output(model: onnx.ModelProto, _: Path) -> None:
    model.graph.node.append(dequantize(model))


def cyclic(model: onnx.ModelProto, _: Path) -> None:
    model.graph.node.append(helper.make_node("Transpose", ["w_d"], ["q"]))
    model.graph.node.append(helper.make_node("Transpose", ["q"], ["q"]))


def other_k(model: onnx.ModelProto, _: Path) -> None:
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", 100]))


def unknown_operator(model: onnx.ModelProto, _: Path) -> None:
    model.graph.node[-1].op_type = "MatMulTypo"


def not_utf8(model: onnx.ModelProto, _: Path) -> None:
    model.graph.name = "marker-of-the-name"  # replaced in the file: Python's protobuf refuses to write it


CASES: dict[str, Change] = {
    "data-truncated": truncated(100),
    "data-empty": truncated(0),
    "data-missing": lambda _, folder: (folder / "model.data").unlink(),
    "offset-outside": entry("w", offset="1000000"),
    "offset-at-the-end": entry("w", offset="8192"),
    "offset-negative": entry("w", offset="-4"),
    "offset-huge": entry("w", offset=str(2**63 - 1)),
    "offset-beyond-64-bits": entry("w", offset="9" * 30),
    "offset-of-5000-digits": entry("w", offset="9" * 5000),
    "offset-no-number": entry("w", offset="here"),
    "offset-hexadecimal": entry("w", offset="0x10"),
    "length-negative": entry("w", length="-1"),
    "length-too-small": entry("w", length="100"),
    "length-too-large": entry("w", length="5000"),
    "length-huge": entry("w", length=str(2**64 - 1)),
    "length-zero": entry("w", length="0"),
    "scales-offset-outside": entry("w_s", offset="1000000"),
    "dims-overflow": dims("w", 2**62, 2**62),
    "dims-overflow-to-zero": dims("w", 2**32, 2**32),
    "dims-negative": dims("w", -128, 64),
    "dims-both-negative": dims("w", -128, -64),
    "dims-zero": dims("w", 0, 64),
    "dims-other": dims("w", 64, 128),
    "dims-none": dims("w"),
    "dims-more": dims("w", 128, 128),
    "scales-transposed": dims("w_s", 64, 4),
    "scales-flat": dims("w_s", 256),
    "scales-too-few": dims("w_s", 2, 64),
    "scales-scalar": dims("w_s"),
    "zero-points-too-few": dims("w_z", 2, 64),
    "zero-points-flat": dims("w_z", 256),
    "zero-points-of-another-type": data_type("w_z", TensorProto.INT4),
    "zero-points-wider": data_type("w_z", TensorProto.UINT8),
    "weight-of-another-type": data_type("w", TensorProto.INT4),
    "weight-of-no-type": data_type("w", 77),
    "weight-float": data_type("w", TensorProto.FLOAT),
    "scales-of-another-type": data_type("w_s", TensorProto.INT32),
    "block-size-zero": attribute("block_size", 0),
    "block-size-negative": attribute("block_size", -32),
    "block-size-missing": attribute("block_size", None),
    "block-size-other": attribute("block_size", 64),
    "block-size-huge": attribute("block_size", 2**62),
    "block-size-48": attribute("block_size", 48),
    "axis-2": attribute("axis", 2),
    "axis-huge": attribute("axis", 2**63 - 1),
    "axis-minus-3": attribute("axis", -3),
    "axis-missing": attribute("axis", None),
    "input-missing": inputs("w", "w_s", "gone"),
    "scales-missing": inputs("w", "gone", "w_z"),
    "scales-unnamed": inputs("w", "", "w_z"),
    "inputs-one": inputs("w"),
    "inputs-none": inputs(),
    "inputs-four": inputs("w", "w_s", "w_z", "w_z"),
    "initializer-missing": no_initializer("w_s"),
    "location-absolute": absolute,
    "location-parent": parent,
    "location-back-again": back_again,
    "location-empty": entry("w", location=""),
    "location-link-outside": link_outside,
    "location-link-inside": link_inside,
    "location-directory": directory,
    "location-fifo": fifo,
    "location-device": device,
    "location-twice": twice_the_location,
    "location-none": no_location,
    "initializer-twice": duplicate_initializer,
    "output-twice": duplicate_output,
    "cyclic": cyclic,
    "activation-of-another-width": other_k,
    "unknown-operator": unknown_operator,
    "name-not-utf-8": not_utf8,
}


def broken(change: Change, folder: Path, n_major: bool = False) -> str:
    """A model with external data, changed."""
    inside = folder / "inside"
    inside.mkdir()
    path = Path(str(save(linear(Weight(n_major=n_major)), inside, "external")))
    model = onnx.load(path, load_external_data=False)
    change(model, inside)
    path.write_bytes(model.SerializeToString().replace(b"marker-of-the-name", b"\xff" * len("marker-of-the-name")))
    return str(path)


@pytest.mark.parametrize("route", ["borrowed", "by path"])
@pytest.mark.parametrize("n_major", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_stock_is_right(tmp_path: Path, case: str, n_major: bool, route: str) -> None:
    path = broken(CASES[case], tmp_path, n_major)
    spill = tmp_path / "spill"
    spill.mkdir()
    options, providers = (quiet(), CPU) if route == "borrowed" else (added_provider(), None)
    mine = Options(spill_dir=spill, buffer="file")
    theirs, truth = outcome(lambda: stock(path)), outcome(unoptimized(path))
    before = settled_descriptors()
    ours = outcome(lambda: create_session(path, options, providers, options=mine))
    assert_like(ours, theirs, truth)
    assert not list(spill.iterdir())
    assert descriptors() == before


@pytest.mark.parametrize("case", CASES)
def test_inspect_reports_or_refuses(tmp_path: Path, case: str) -> None:
    from google.protobuf.message import DecodeError

    from ort_qdq_plugin import ModelError

    try:
        report = inspect(broken(CASES[case], tmp_path))
    except (ModelError, OSError, DecodeError):
        return
    assert isinstance(report, Report)


@pytest.mark.parametrize("block", [16, PER_CHANNEL, -1])
@pytest.mark.parametrize("change", ["scales", "weight", "zero points"])
def test_inline_weights_that_are_too_short(block: int, change: str) -> None:
    model = linear(Weight(block=block))
    broken_one = tensor(model, {"scales": "w_s", "weight": "w", "zero points": "w_z"}[change])
    broken_one.raw_data = broken_one.raw_data[:-1]
    stored = bytes(model.SerializeToString())
    theirs = outcome(lambda: stock(stored))
    assert isinstance(theirs, tuple)
    assert outcome(lambda: create_session(stored, quiet(), CPU)) == theirs


def test_a_session_is_usable_after_another_failed(tmp_path: Path) -> None:
    path = broken(CASES["data-truncated"], tmp_path)
    options: Any = quiet()
    with pytest.raises(Exception, match="out of bounds"):
        create_session(path, options, CPU)
    good = save(linear(Weight()), tmp_path, "external")
    session = create_session(good, options, CPU)
    assert made_report(session).route == "borrowed"
    assert session.run(None, x_of(session))
