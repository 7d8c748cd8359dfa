"""Execution providers: which a session will have, and which take fused nodes."""

from contextlib import nullcontext
from typing import Any

import onnxruntime as ort
import pytest

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.ort.providers import check_providers, provider_names
from tests.support import added_provider, quiet

CPU, CUDA, AZURE = "CPUExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"
TENSORRT, QNN = "TensorrtExecutionProvider", "QNNExecutionProvider"


@pytest.mark.parametrize(
    ("given", "names"),
    [([CPU], (CPU,)), ([CUDA, CPU], (CUDA, CPU)), ([(CUDA, {"device_id": 0}), CPU], (CUDA, CPU)), ((CPU,), (CPU,))],
)
def test_those_that_are_given(given: Any, names: tuple[str, ...]) -> None:
    assert provider_names(given, None) == provider_names(given, added_provider()) == names


@pytest.mark.parametrize("given", [None, [], ()])
def test_those_of_the_build_or_of_the_options(given: Any) -> None:
    assert provider_names(given, None) == provider_names(given, quiet()) == tuple(ort.get_available_providers())
    assert provider_names(given, added_provider()) == (CPU,)


@pytest.mark.parametrize(("names", "refused"), [
    ((), None), ((CPU,), None), ((CUDA, CPU), None), (("DmlExecutionProvider", "WebGpuExecutionProvider", AZURE, CPU), None),
    ((TENSORRT, CPU), TENSORRT), ((CPU, QNN, TENSORRT), QNN), (("an added provider",), "an added provider"),
])  # fmt: skip
def test_the_first_that_takes_no_fused_nodes(names: tuple[str, ...], refused: str | None) -> None:
    text = f"does not run MatMulNBits, or wants the QDQ form itself: {refused}$"
    with pytest.raises(LeaveToStock, match=text) if refused else nullcontext():
        check_providers(names)
