"""The model that ONNX Runtime is given: one initializer for what is the same, and a place for every tensor."""

import os
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.fusion.rewrite import round_less_in_subgraphs
from ort_qdq_plugin.load.assemble import assemble
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.plan import plan_model
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.memory.buffer import make_buffers
from ort_qdq_plugin.memory.external_data import ExternalData
from ort_qdq_plugin.model.messages import external_tensors
from ort_qdq_plugin.model.parsed import parse
from tests.support import FORMS, Form, linear, opened, save, stack


def assembled(path: str, meanwhile: Callable[[], object] = lambda: None) -> tuple[onnx.ModelProto, ExternalData]:
    """The model that is made of the one at a path, packed into buffers of zeros."""
    with closing(opened(path)) as skeleton:
        plan = plan_model(parse(skeleton), LoadRequest(path, None, Options(threads=1)), Journal())
        external_data = ExternalData(False, make_buffers(plan.layout.sizes, "memory", None))
        meanwhile()
        model = assemble(plan.parsed, plan.scope, plan.matches, plan.layout, external_data)
    return onnx.load_from_string(model), external_data


def references(model: onnx.ModelProto) -> dict[str, tuple[str, int, int]]:
    """Location, offset and length of each external tensor."""
    found = {}
    for tensor in external_tensors(model.graph):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        found[tensor.name] = (entries["location"], int(entries.get("offset", 0)), int(entries["length"]))
    return found


@pytest.fixture
def external(tmp_path: Path) -> str:
    """One product, its tensors in model.data."""
    return str(save(linear(Weight()), tmp_path, "external"))


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("n_major", [False, True])
def test_every_tensor_lies_in_a_buffer(tmp_path: Path, form: Form, n_major: bool) -> None:
    model, external_data = assembled(str(save(stack(2, 128, n_major=n_major), tmp_path, form)))
    assert [node.op_type for node in model.graph.node].count("MatMulNBits") == 2
    found = references(model)
    assert {location for location, _, _ in found.values()} == set(external_data.buffers)
    for location, offset, length in found.values():
        assert 0 <= offset < offset + length <= len(external_data.buffers[location])
    for before, behind in pairwise(sorted(found.values())):
        assert before[0] != behind[0] or before[1] + before[2] <= behind[1]


def test_what_is_the_same_is_one_initializer(tmp_path: Path) -> None:
    draft = Draft("shared")
    weight = draft.weight(Weight(k=128, n=128))
    first = draft.node("MatMul", [draft.input("x", ["m", 128]), weight], "p")
    draft.node("MatMul", [first, weight], draft.output("y", ["m", 128]))
    model, _ = assembled(str(save(draft.model(), tmp_path, "external")))
    one, other = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    assert one.input[1:] == other.input[1:]
    assert len({tensor.name for tensor in model.graph.initializer}) == len(model.graph.initializer) == 3


def test_what_nothing_reads_any_more_is_dropped(external: str) -> None:
    model, _ = assembled(external)
    assert "DequantizeLinear" not in {node.op_type for node in model.graph.node}
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_other_large_tensors_stay_where_they_are(tmp_path: Path) -> None:
    draft = Draft("other")
    product = draft.node("MatMul", [draft.input("x", ["m", 64]), draft.weight(Weight(k=64, n=64))], "p")
    draft.node("MatMul", [product, draft.floats("other", [64, 64])], "y")
    draft.output("y", ["m", 64])
    path = str(save(draft.model(), tmp_path, "external"))
    before = references(onnx.load(path, load_external_data=False))["other"]
    model, external_data = assembled(path)
    location, offset, length = references(model)["other"]
    assert (offset, length) == (before[1], before[2])
    assert bytes(external_data.buffers[location][:]) == (tmp_path / "model.data").read_bytes()


def test_names_that_are_very_long_are_not_repeated_as_a_whole(tmp_path: Path) -> None:
    model = linear(Weight())
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    (dequantize,) = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
    weight.name = dequantize.input[0] = "w" * 900
    rewritten, _ = assembled(str(save(model, tmp_path, "external")))
    assert max(len(tensor.name) for tensor in rewritten.graph.initializer) < 300


@pytest.mark.parametrize("name", ["model.onnx", "model.data"])
def test_a_file_that_has_changed_by_then(tmp_path: Path, external: str, name: str) -> None:
    with pytest.raises(SourceChangedError, match=name):
        assembled(external, meanwhile=lambda: os.utime(tmp_path / name, (0, 0)))


def test_products_with_zero_points_in_subgraphs_do_not_round() -> None:
    """At any depth, and only those of 4 and 8 bits; what has no level keeps none."""

    def product(name: str, bits: int, zero_points: str = "z", **level: Any) -> onnx.NodeProto:
        inputs = ["x", "b", "s", *([zero_points] if zero_points else [])]
        return onnx.helper.make_node("MatMulNBits", inputs, [name], name, domain="com.microsoft", bits=bits, **level)

    def branches(*nodes: onnx.NodeProto) -> onnx.NodeProto:
        return onnx.helper.make_node("If", ["k"], ["y"], then_branch=onnx.helper.make_graph(nodes, "then", [], []))

    inner = branches(product("deep", 8, accuracy_level=4))
    nodes = [
        product("two", 2, accuracy_level=4), product("four", 4, accuracy_level=4), product("eight", 8, accuracy_level=4),
        product("none", 4, "", accuracy_level=4), product("default", 4), inner,
    ]  # fmt: skip
    graph = onnx.helper.make_graph([product("main", 4, accuracy_level=4), branches(*nodes)], "main", [], [])
    round_less_in_subgraphs(graph)
    found: dict[str, int] = {}
    for one in (graph, graph.node[1].attribute[0].g, graph.node[1].attribute[0].g.node[-1].attribute[0].g):
        for node in one.node:
            levels = [attribute.i for attribute in node.attribute if attribute.name == "accuracy_level"]
            found |= {node.name: levels[0] if levels else -1} if node.name else {}
    assert found == {"main": 4, "two": 4, "four": 0, "eight": 0, "none": 4, "default": -1, "deep": 0}
