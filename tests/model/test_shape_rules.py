"""Every operator that is followed, drawn with many attributes and in all opsets, against ONNX's own inference."""

from itertools import groupby
from operator import attrgetter

import onnx
import pytest
from onnx import defs, shape_inference

from ort_qdq_plugin.model.shape_rules import OPERATORS
from tests.model.drawn_nodes import NODES, drawn
from tests.model.inferring import check, followed

FIRST_OPSET, LAST_OPSET = 10, min(26, defs.onnx_opset_version())
SEEDS = range(80)
# Their exact dimensions, beside those that are open, are left to ONNX's inference.
RANK_ALONE = {"Attention", "DepthToSpace", "GroupNormalization", "SpaceToDepth"}


def is_valid(model: onnx.ModelProto) -> bool:
    """Whether ONNX's inference finds nothing wrong."""
    try:
        shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
    except shape_inference.InferenceError:
        return False
    return True


FIRST = {
    name: min(schema.since_version for schema in schemas)
    for name, schemas in groupby(
        sorted((schema for schema in defs.get_all_schemas_with_history() if not schema.domain), key=attrgetter("name")),
        attrgetter("name"),
    )
}


@pytest.mark.parametrize("op_type", OPERATORS)
def test_operators(op_type: str) -> None:
    valid = known = settled = 0
    for seed in SEEDS:
        opset = FIRST_OPSET + seed % (LAST_OPSET - FIRST_OPSET + 1)
        opset = max(opset, FIRST.get(op_type, FIRST_OPSET))
        model = drawn(op_type, opset, seed)
        if not is_valid(model):
            continue
        valid += 1
        settled += check(model) > len(model.graph.node) - 1
        known += any(name.startswith("y") for name in followed(model)[0])
    assert valid >= 10
    assert known >= valid / 2
    assert op_type in RANK_ALONE or settled >= valid / 6


def test_draws_are_of_operators_that_are_followed() -> None:
    assert NODES.keys() <= OPERATORS.keys()
