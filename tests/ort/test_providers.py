"""Execution providers: which a session will have, and which take fused nodes."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import onnxruntime as ort
import pytest

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.ort import providers as providers_module
from ort_qdq_plugin.ort.providers import TAKES_FUSED, check_providers, has_only_added, may_dequantize_once, provider_names
from tests.claims.pages import rows_below
from tests.support import added_provider, quiet, stack

CPU, CUDA, AZURE = "CPUExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider"
TENSORRT, QNN, OPENVINO = "TensorrtExecutionProvider", "QNNExecutionProvider", "OpenVINOExecutionProvider"


def on_the_cpu() -> ort.SessionOptions:
    """The way in which providers of plugins are added."""
    options = quiet()
    options.add_provider_for_devices([device for device in ort.get_ep_devices() if device.ep_name == CPU], {})
    return options


def selected() -> ort.SessionOptions:
    options = quiet()
    options.set_provider_selection_policy(ort.OrtExecutionProviderDevicePolicy.PREFER_CPU)
    return options


def selected_by_a_function() -> ort.SessionOptions:
    options = quiet()
    options.set_provider_selection_policy_delegate(lambda devices, *_: [one for one in devices if one.ep_name == CPU])
    return options


ADDED = [added_provider, on_the_cpu, selected, selected_by_a_function]


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build with other providers than this one's, and with a library that was registered."""
    monkeypatch.setattr(providers_module, "available_providers", lambda: (TENSORRT, CUDA, CPU, "a plugin's"))


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([CPU], (CPU,)), ([CUDA, CPU], (CUDA, CPU)), ([(CUDA, {"device_id": 0}), CPU], (CUDA, CPU)), ((CPU,), (CPU,)),
        (["a plugin's"], ("a plugin's",)), ([QNN, CUDA], (CUDA,)), ([(QNN, {})], (CPU,)),
        # What ONNX Runtime has an error for.
        (["Nonsense"], ("Nonsense",)), ([5, (), (CPU, {}, 1)], ("5", "()", CPU)),
    ],
)  # fmt: skip
def test_those_that_are_given_and_there(given: Any, names: tuple[str, ...]) -> None:
    assert provider_names(given, None) == provider_names(given, added_provider()) == names
    assert not has_only_added(given, added_provider())


@pytest.mark.parametrize("given", [[CPU], [CUDA, CPU], [QNN], [AZURE, CPU], [(CPU, {})]])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_has_those_that_are_given(given: Any) -> None:
    session = ort.InferenceSession(stack(1, 32).SerializeToString(), quiet(), given)
    assert {*provider_names(given, None), CPU} == set(session.get_providers())


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("given", [None, [], ()])
def test_none_are_given(given: Any) -> None:
    """Whatever is compiled in or registered, a session has the CPU provider alone."""
    for options in (None, quiet()):
        assert not has_only_added(given, options)
        assert provider_names(given, options) == (CPU,)
        session = ort.InferenceSession(stack(1, 32).SerializeToString(), options, given)
        assert session.get_providers() == [CPU]


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("given", [None, []])
def test_those_of_the_options(added: Callable[[], ort.SessionOptions], given: Any) -> None:
    options = added()
    assert has_only_added(given, options)
    assert provider_names(given, options) == (CPU,)


@pytest.mark.parametrize(("names", "refused"), [
    ((), None), ((CPU,), None), ((CUDA, CPU), None), (("DmlExecutionProvider", "WebGpuExecutionProvider", AZURE, CPU), None),
    ((OPENVINO, CPU), None), ((f"{OPENVINO}.AUTO", "ggml"), None),
    ((TENSORRT, CPU), TENSORRT), ((CPU, QNN, TENSORRT), QNN), (("an added provider",), "an added provider"),
])  # fmt: skip
def test_the_first_that_takes_no_fused_nodes(names: tuple[str, ...], refused: str | None) -> None:
    text = f"not known to take fused nodes, so that it gets the QDQ form: {refused}$"
    with pytest.raises(LeaveToStock, match=text) if refused else nullcontext():
        check_providers(names)


def test_which_take_floats_in_place_of_what_stays() -> None:
    assert may_dequantize_once((CUDA, f"{OPENVINO}.AUTO", CPU))
    assert not may_dequantize_once(("ggml", CPU))


def test_the_documentation_has_those_that_take_fused_nodes() -> None:
    rows = rows_below("docs/platforms.md", "| provider | fused nodes | tried |")
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])}
    assert named - {f"{OPENVINO}.AUTO"} == TAKES_FUSED
