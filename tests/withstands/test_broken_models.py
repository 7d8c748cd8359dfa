"""Broken models and data files: what stock ONNX Runtime says is what the user hears, and nothing is left behind."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import ModelError, Options, create_session, inspect
from tests import support
from tests.support import CPU, added_provider, external_tensor, linear, made_report, quiet, save, stock, tensor_of, x_of
from tests.withstands.outcomes import assert_like, outcome, unoptimized

Change = Callable[[onnx.ModelProto, Path], object]
FLOAT = onnx.AttributeProto.FLOAT


def dequantize(model: onnx.ModelProto) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    return node


def entry(name: str, **entries: str) -> Change:
    return lambda model, _: external_tensor(model, name, **entries)


def dims(name: str, *sizes: int) -> Change:
    return lambda model, _: tensor_of(model, name).dims.__setitem__(slice(None), sizes)


def data_type(name: str, kind: int) -> Change:
    return lambda model, _: setattr(tensor_of(model, name), "data_type", kind)


def attribute(name: str, value: int | None) -> Change:
    def change(model: onnx.ModelProto, _: Path) -> None:
        node = dequantize(model)
        kept = [attr for attr in node.attribute if attr.name != name]
        del node.attribute[:]
        node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])

    return change


def inputs(*names: str) -> Change:
    return lambda model, _: dequantize(model).input.__setitem__(slice(None), names)


def truncated(nbytes: int) -> Change:
    return lambda _, folder: os.truncate(folder / "model.data", nbytes)


def made_at(location: str, make: Callable[[Path], object]) -> Change:
    """The weight is in another file, which is made first."""

    def change(model: onnx.ModelProto, folder: Path) -> None:
        make(folder / location)
        external_tensor(model, "w", location=location)

    return change


def leaving_link(path: Path) -> None:
    shutil.copy(path.with_name("model.data"), path.parents[1] / "outside.data")
    path.symlink_to("../outside.data")


def cyclic(model: onnx.ModelProto, _: Path) -> None:
    model.graph.node.append(helper.make_node("Transpose", ["w_d"], ["q"]))
    model.graph.node.append(helper.make_node("Transpose", ["q"], ["q"]))


def other_k(model: onnx.ModelProto, _: Path) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", 100]))


# Outside the file, at its end, beyond 64 bits, longer than Python reads, and no numbers.
OFFSETS = ("1000000", "8192", "-4", str(2**63 - 1), "9" * 30, "9" * 5000, "here", "0x10")
# Of 8192 elements: too many, negative, none, as many otherwise arranged, a scalar's, and twice as many.
DIMS = ((2**62, 2**62), (2**32, 2**32), (-128, 64), (-128, -64), (0, 64), (64, 128), (), (128, 128))
CASES: dict[str, Change] = {
    "data-truncated": truncated(100),
    "data-empty": truncated(0),
    "data-missing": lambda _, folder: (folder / "model.data").unlink(),
    **{f"offset-{text[:30]}-of-{len(text)}": entry("w", offset=text) for text in OFFSETS},
    **{f"length-{text}": entry("w", length=text) for text in ("-1", "100", "5000", str(2**64 - 1), "0")},
    "scales-offset-outside": entry("w_s", offset="1000000"),
    **{f"dims-{sizes}": dims("w", *sizes) for sizes in DIMS},
    **{f"scales-{sizes}": dims("w_s", *sizes) for sizes in ((64, 4), (256,), (2, 64), ())},
    **{f"zero-points-{sizes}": dims("w_z", *sizes) for sizes in ((2, 64), (256,))},
    "zero-points-of-another-type": data_type("w_z", TensorProto.INT4),
    "zero-points-wider": data_type("w_z", TensorProto.UINT8),
    "weight-of-another-type": data_type("w", TensorProto.INT4),
    "weight-of-no-type": data_type("w", 77),
    "weight-float": data_type("w", TensorProto.FLOAT),
    "scales-of-another-type": data_type("w_s", TensorProto.INT32),
    **{f"block-size-{size}": attribute("block_size", size) for size in (0, -32, None, 64, 2**62, 48)},
    **{f"axis-{axis}": attribute("axis", axis) for axis in (2, 2**63 - 1, -3, None)},
    "input-missing": inputs("w", "w_s", "gone"),
    "scales-missing": inputs("w", "gone", "w_z"),
    "scales-unnamed": inputs("w", "", "w_z"),
    "inputs-one": inputs("w"),
    "inputs-none": inputs(),
    "inputs-four": inputs("w", "w_s", "w_z", "w_z"),
    "initializer-missing": lambda model, _: model.graph.initializer.remove(tensor_of(model, "w_s")),
    "location-absolute": lambda model, folder: external_tensor(model, "w", location=str(folder / "model.data")),
    "location-parent": made_at("../outside.data", lambda path: shutil.copy(path.parents[1] / "model.data", path)),
    "location-back-again": entry("w", location="../inside/model.data"),
    "location-empty": entry("w", location=""),
    "location-link-outside": made_at("link.data", leaving_link),
    "location-link-inside": made_at("link.data", lambda path: path.symlink_to("model.data")),
    "location-directory": made_at("sub", Path.mkdir),
    "location-fifo": made_at("fifo", lambda path: os.mkfifo(path)),
    "location-device": entry("w", location="/dev/zero"),
    "location-twice": lambda model, _: tensor_of(model, "w").external_data.add(key="location", value="elsewhere.data"),
    "location-none": lambda model, _: tensor_of(model, "w").ClearField("external_data"),
    "initializer-twice": lambda model, _: model.graph.initializer.append(tensor_of(model, "w")),
    "output-twice": lambda model, _: model.graph.node.append(dequantize(model)),
    "cyclic": cyclic,
    "activation-of-another-width": other_k,
    "unknown-operator": lambda model, _: setattr(model.graph.node[-1], "op_type", "MatMulTypo"),
    # Replaced in the file: Python's protobuf refuses to write it.
    "name-not-utf-8": lambda model, _: setattr(model.graph, "name", "marker-of-the-name"),
}


def domain_not_imported(model: onnx.ModelProto, _: Path) -> None:
    node = model.graph.node[-1]
    body = [helper.make_node("MatMul", list(node.input), list(node.output))]
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("local", "product", list(node.input), list(node.output), body, opsets))
    node.op_type, node.domain = "product", "local"


def shadowed(model: onnx.ModelProto, _: Path) -> None:
    """A branch with a value of the same name as one outside."""
    output = helper.make_tensor_value_info("branch_y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Neg", ["x"], ["w_d"]), helper.make_node("Neg", ["w_d"], ["branch_y"])]
    branch = helper.make_graph(nodes, "branch", [], [output])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))


def axes_outside(model: onnx.ModelProto, _: Path) -> None:
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [7]))
    model.graph.node.insert(1, helper.make_node("Unsqueeze", ["w_d", "axes"], ["u"]))
    model.graph.node[-1].input[1] = "u"


def opset(version: int) -> Change:
    return lambda model, _: setattr(model.opset_import[0], "version", version)


# What stock refuses without any optimization, of nodes that a fusion would take away.
INVALID: dict[str, Change] = {
    "attribute-unknown": lambda model, _: dequantize(model).attribute.add(name="alpha", type=FLOAT, f=1.0),
    "attribute-twice": lambda model, _: dequantize(model).attribute.append(dequantize(model).attribute[0]),
    "attribute-of-another-type": lambda model, _: setattr(dequantize(model).attribute[0], "type", FLOAT),
    "opset-too-old": opset(7),
    "opset-negative": opset(-1),
    "opset-without-blocks": opset(19),
    "stated-type": lambda model, _: model.graph.value_info.append(
        helper.make_tensor_value_info("w_d", TensorProto.INT8, None)
    ),
    "function-domain-not-imported": domain_not_imported,
    "name-shadowed": shadowed,
    "axes-outside": axes_outside,
    "key-twice": lambda model, _: tensor_of(model, "w").external_data.add(key="location", value="model.data"),
}
ALL = CASES | INVALID


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
@pytest.mark.parametrize("case", ALL)
def test_stock_is_right(tmp_path: Path, spill: Path, case: str, n_major: bool, route: str) -> None:
    path = broken(ALL[case], tmp_path, n_major)
    options, providers = (quiet(), CPU) if route == "borrowed" else (added_provider(), None)
    mine = Options(spill_dir=spill, buffer="file")
    theirs, truth = outcome(lambda: stock(path)), outcome(unoptimized(path))
    assert case in CASES or isinstance(truth, tuple)
    before = support.settled_descriptors()
    ours = outcome(lambda: create_session(path, options, providers, options=mine))
    assert_like(ours, theirs, truth)
    assert support.descriptors() == before


@pytest.mark.parametrize("case", ALL)
def test_inspect_reports_or_refuses(tmp_path: Path, case: str) -> None:
    with suppress(ModelError, OSError, DecodeError):
        inspect(broken(ALL[case], tmp_path))


@pytest.mark.parametrize("block", [16, PER_CHANNEL, -1])
@pytest.mark.parametrize("name", ["w_s", "w", "w_z"])
def test_inline_weights_that_are_too_short(block: int, name: str) -> None:
    model = linear(Weight(block=block))
    broken_one = tensor_of(model, name)
    broken_one.raw_data = broken_one.raw_data[:-1]
    stored = bytes(model.SerializeToString())
    theirs = outcome(lambda: stock(stored))
    assert isinstance(theirs, tuple)
    assert outcome(lambda: create_session(stored, quiet(), CPU)) == theirs


def test_a_session_is_usable_after_another_failed(tmp_path: Path) -> None:
    options = quiet()
    with pytest.raises(Exception, match="out of bounds"):
        create_session(broken(truncated(100), tmp_path), options, CPU)
    session = create_session(save(linear(Weight()), tmp_path, "external"), options, CPU)
    assert made_report(session).route == "borrowed"
    assert session.run(None, x_of(session))
