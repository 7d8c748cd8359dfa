"""What packing may make of a model: its weights and some padding, not many times its bytes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin import StockReason, inspect
from tests.support import external_tensor, linear, save
from tests.withstands.hostile import HOSTILE


@pytest.mark.slow
def test_tensors_that_overlap_do_not_multiply(tmp_path: Path) -> None:
    """Many weights in the same few bytes would become many times these bytes when packed."""
    draft, weights = Draft("overlap"), 90
    value = draft.input("x", ["m", 512])
    for number in range(weights):
        dequantized = draft.weight(Weight(k=512, n=4096, block=PER_CHANNEL), f"w{number}")
        draft.output(draft.node("MatMul", [value, dequantized], f"y{number}"), ["m", 4096])
    model = draft.model()
    stored = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) == 512 * 4096 // 2]
    assert len(stored) == weights
    (tmp_path / "model.data").write_bytes(stored[0].raw_data + bytes(weights))
    for offset, tensor in enumerate(stored):
        external_tensor(model, tensor.name, location="model.data", offset=str(offset), length=str(len(tensor.raw_data)))
    report = inspect(save(model, tmp_path, "file"))
    assert report.packed_bytes > 16 * sum(file.stat().st_size for file in tmp_path.iterdir())
    assert report.stock_reason is StockReason.PACKED_SIZE


@settings(deadline=None, max_examples=50)
@given(
    k=st.integers(1, 70),
    n=st.integers(1, 300),
    block=st.sampled_from([PER_TENSOR, 0, 16, 32, 256]),
    bits=st.sampled_from([2, 4, 8]),
)
def test_packed_operands_grow_by_padding_only(k: int, n: int, block: int, bits: int) -> None:
    model = linear(Weight(element=f"uint{bits}", k=k, n=n, block=block))
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert inspect(bytes(model.SerializeToString())).packed_bytes <= 64 * stored + 4096


@pytest.mark.parametrize("name", ["block-of-2**40", "block-of-2**62"])
def test_packing_does_not_multiply_a_model(name: str) -> None:
    model = HOSTILE[name]()
    report = inspect(model)
    assert report.stock_reason is not None or report.packed_bytes <= 16 * len(model)
