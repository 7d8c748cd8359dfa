"""Nodes that a fusion would take away are checked first: what stock refuses is refused here too."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ort_qdq_plugin import create_session
from tests.support import CPU, external_tensor, linear, quiet, raised, save, stock
from tests.withstands.hostile import SMALL

Change = Callable[[onnx.ModelProto], object]
FLOAT = onnx.AttributeProto.FLOAT


def domain_not_imported(model: onnx.ModelProto) -> None:
    node = model.graph.node[-1]
    body = [helper.make_node("MatMul", list(node.input), list(node.output))]
    opsets = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("local", "product", list(node.input), list(node.output), body, opsets))
    node.op_type, node.domain = "product", "local"


def shadowed(model: onnx.ModelProto) -> None:
    """A branch with a value of the same name as one outside."""
    output = helper.make_tensor_value_info("branch_y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Neg", ["x"], ["w_d"]), helper.make_node("Neg", ["w_d"], ["branch_y"])]
    branch = helper.make_graph(nodes, "branch", [], [output])
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))


def axes_outside(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [7]))
    model.graph.node.insert(1, helper.make_node("Unsqueeze", ["w_d", "axes"], ["u"]))
    model.graph.node[-1].input[1] = "u"


def key_twice(model: onnx.ModelProto) -> None:
    external_tensor(model, "w", location="model.data", offset="0").external_data.add(key="location", value="model.data")


def opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


INVALID: dict[str, Change] = {
    "attribute-unknown": lambda model: model.graph.node[0].attribute.add(name="alpha", type=FLOAT, f=1.0),
    "attribute-twice": lambda model: model.graph.node[0].attribute.append(model.graph.node[0].attribute[0]),
    "attribute-of-another-type": lambda model: setattr(model.graph.node[0].attribute[0], "type", FLOAT),
    "opset-too-old": opset(7),
    "opset-negative": opset(-1),
    "opset-without-blocks": opset(19),
    "stated-type": lambda model: model.graph.value_info.append(
        helper.make_tensor_value_info("w_d", TensorProto.INT8, [32, 16])
    ),
    "function-domain-not-imported": domain_not_imported,
    "name-shadowed": shadowed,
    "axes-outside": axes_outside,
    "key-twice": key_twice,
}


@pytest.mark.parametrize("name", INVALID)
def test_what_stock_refuses_is_not_fused_away(tmp_path: Path, name: str) -> None:
    model = linear(SMALL)
    INVALID[name](model)
    (tmp_path / "model.data").write_bytes(bytes(4096))
    path = str(save(model, tmp_path, "file"))
    theirs = raised(lambda: stock(path))
    assert theirs is not None
    assert raised(lambda: create_session(path, quiet(), CPU)) == theirs
