"""External data: what is missing or too short is named, unless nothing reads it."""

import os
from pathlib import Path

import onnx
import pytest
from onnx import helper

from ort_qdq_plugin.model.external import check_external_data, check_external_data_of
from ort_qdq_plugin.model.parsed import parse
from tests.support import external_tensor, opened, refusing, save, stack, tensor_of

NEEDED = 83968  # what two weights with scales and zero points take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(save(stack(2, 256), tmp_path, "external"))  # type: ignore[arg-type]


def check(model: Path, problem: str | None) -> None:
    """Parsed for this alone, and as loads have it."""
    with refusing(problem):
        check_external_data(opened(str(model)))
    with refusing(problem):
        check_external_data_of(parse(opened(str(model))))


def test_what_is_there(path: Path) -> None:
    assert os.path.getsize(path.with_suffix(".data")) == NEEDED
    check(path, None)


@pytest.mark.parametrize("size", [0, 1000, NEEDED - 1])
def test_a_file_that_is_too_short(size: int, path: Path) -> None:
    """However many of the tensors it has."""
    os.truncate(path.with_suffix(".data"), size)
    check(path, f"external data .*model.data has {size} bytes, {NEEDED} are needed")


def test_a_file_that_is_missing(path: Path) -> None:
    data = path.with_suffix(".data")
    data.unlink()
    check(path, "external data .*model.data does not exist")
    data.mkdir()
    check(path, "external data .*model.data is not a regular file")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="there are no users here")
def test_a_file_that_may_not_be_read(path: Path) -> None:
    if os.geteuid() != 0:
        path.with_suffix(".data").chmod(0)
        check(path, "model.data cannot be opened: Permission denied")
        return
    path.with_suffix(".data").chmod(0o600)
    for folder in path.parents[:4]:  # those of a test's own folder, which one of several workers has one more of
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        check(path, "model.data cannot be opened: Permission denied")
    finally:
        os.seteuid(0)


def test_a_file_of_which_only_one_weight_is_missing(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    external_tensor(model, "w1", location="other.data", offset="0")
    path.write_bytes(model.SerializeToString())
    check(path, "other.data does not exist")


def in_branch(model: onnx.ModelProto, name: str) -> None:
    """Have a node of a branch read a value of the main graph."""
    kind = tensor_of(model, name).data_type
    output = helper.make_tensor_value_info("out", kind, None)
    branch = helper.make_graph([helper.make_node("Identity", [name], ["out"])], "branch", [], [output])
    model.graph.node.append(helper.make_node("If", ["x"], ["chosen"], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize("reader", ["none", "a branch", "an output"])
def test_what_nothing_reads_need_not_be_there(reader: str, path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    unread = model.graph.initializer.add(name="unread", data_type=1, dims=[99])
    external_tensor(model, unread.name, location="other.data", offset="0", length="396")
    if reader == "a branch":
        in_branch(model, "unread")
    elif reader == "an output":
        model.graph.output.append(helper.make_tensor_value_info("unread", 1, [99]))
    path.write_bytes(model.SerializeToString())
    check(path, None if reader == "none" else "other.data does not exist")


def test_what_cannot_be_used_for_another_reason_is_left_to_others(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    external_tensor(model, "w0", length="7")
    path.write_bytes(model.SerializeToString())
    check(path, None)


def test_a_tensor_without_a_size_beside_one_that_is_cut_off(path: Path) -> None:
    """Its dimensions are not multiplied: a small model can have any number of them."""
    model = onnx.load(path, load_external_data=False)
    unread = model.graph.initializer.add(name="unread", data_type=1, dims=[2**62] * 60_000)
    external_tensor(model, unread.name, location="model.data")
    path.write_bytes(model.SerializeToString())
    os.truncate(path.with_suffix(".data"), 1000)
    check(path, f"has 1000 bytes, {NEEDED} are needed")
