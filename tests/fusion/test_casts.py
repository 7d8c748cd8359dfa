"""What values are cast from without any change."""

import numpy as np
import pytest

from ort_qdq_plugin.folding.arithmetic import cast
from ort_qdq_plugin.folding.building import reshaped
from ort_qdq_plugin.folding.expression import Elementwise, Expression, Reshaped, Stored, Transposed
from ort_qdq_plugin.fusion.casts import core_of, is_exact_cast
from ort_qdq_plugin.model.elements import CODES
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor

SHAPE = (4, 6)


def stored(kind: str) -> Stored:
    nbytes = 24 * {"float": 32, "int32": 32, "int16": 16, "uint16": 16, "int4": 4, "uint4": 4}.get(kind, 8) // 8
    return Stored(StoredTensor("t", CODES[kind], SHAPE, MemorySource(bytes(nbytes)), offset=0, nbytes=nbytes))


def casted(source: Expression, kind: str) -> Elementwise:
    target = CODES[kind]
    return Elementwise(f"Cast {target}", cast(source.data_type, target), (source,), target, source.shape)


@pytest.mark.parametrize(
    ("source", "target", "exact"),
    [
        ("int8", "float", True), ("uint8", "float16", True), ("int4", "int8", True), ("uint4", "uint8", True),
        ("uint4", "int8", True), ("uint8", "int16", True), ("uint8", "int8", False), ("int8", "uint8", False),
        ("int8", "int4", False), ("int16", "int8", False), ("float", "int8", False), ("int8", "uint16", False),
    ],
)  # fmt: skip
def test_which_casts_change_nothing(source: str, target: str, exact: bool) -> None:
    assert is_exact_cast(casted(stored(source), target)) == exact


def test_the_core_is_in_the_shape_of_the_value() -> None:
    leaf = stored("int4")
    value = casted(Transposed(Reshaped(casted(leaf, "int8"), (2, 12)), (1, 0)), "float")
    core = core_of(value)
    assert (core.data_type, core.shape) == (CODES["int4"], (12, 2))
    assert isinstance(core, Transposed)
    assert core.source == Stored(leaf.tensor._replace(shape=(2, 12)))
    assert core_of(casted(stored("float"), "int8")).data_type == CODES["int8"]


def test_other_functions_are_no_casts() -> None:
    leaf = stored("int8")
    negated = Elementwise("Neg", np.negative, (leaf,), leaf.data_type, SHAPE)
    assert core_of(negated) is negated


def test_stored_tensors_stay_stored() -> None:
    leaf = stored("int8")
    assert reshaped(leaf, SHAPE) is leaf
    assert reshaped(Reshaped(leaf, (24,)), (2, 12)) == Stored(leaf.tensor._replace(shape=(2, 12)))
    moved = Transposed(leaf, (1, 0))
    assert reshaped(moved, (24,)) == Reshaped(moved, (24,))
