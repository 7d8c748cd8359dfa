"""Execution providers of plugins and of other builds, where they are installed. `conformance.platforms.providers` installs
them."""

from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort
import pytest

from ort_qdq_plugin import Options, create_session
from tests.support import CPU, made_report, python, quiet, save, stack

# Module of a plugin, its function that gives the library's path, and the name that its provider is registered under: ggml's
# has whichever it is.
PLUGINS = {
    "onnxruntime_ep_openvino": ("get_library_path", "OpenVINOExecutionProvider"),
    "onnxruntime_ep_webgpu": ("get_library_path", "WebGpuExecutionProvider"),
    "onnxruntime_ggml": ("library_path", "ggml"),
}

REGISTERED = """
import sys
import numpy as np
import onnxruntime as ort
from importlib import import_module
from ort_qdq_plugin import Options, create_session, report_of
model, module, function, name = sys.argv[1:]
there = {device.ep_name for device in ort.get_ep_devices()}
ort.register_execution_provider_library(name, getattr(import_module(module), function)())
x = {"x": np.linspace(-1, 1, 3 * 128, dtype=np.float32).reshape(3, 128)}
stock = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, x)[0]
session = create_session(model)
assert (len(report_of(session).fused), report_of(session).route) == (2, "borrowed"), report_of(session)
assert session.get_providers() == ["CPUExecutionProvider"]
np.testing.assert_array_equal(session.run(None, x)[0], stock)
added = {device.ep_name: device for device in ort.get_ep_devices() if device.ep_name not in there}
for name, device in added.items():
    options = ort.SessionOptions()
    options.add_provider_for_devices([device], {})
    session = create_session(model, options)
    assert session.get_providers()[0] == name
    assert (len(report_of(session).fused), report_of(session).route) == (2, "by path"), report_of(session)
    assert np.abs(session.run(None, x)[0] - stock).max() <= 2e-2 * np.abs(stock).max()
print(*added)
"""


@pytest.mark.parametrize("module", PLUGINS)
def test_a_plugin(module: str, tmp_path: Path) -> None:
    """A session that does not use it is what it is without; one with its devices is fused."""
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    model = save(stack(2, 128), tmp_path, "external")
    done = python(REGISTERED, model, module, *PLUGINS[module])
    assert done.returncode == 0, done.stderr
    if not done.stdout.split():
        pytest.skip(f"{module} has no device here; a session without it is fused")


def test_a_build_with_other_providers(tmp_path: Path) -> None:
    """A session that names none is fused for the CPU."""
    if set(ort.get_available_providers()) <= {"AzureExecutionProvider", *CPU}:
        pytest.skip("this build of ONNX Runtime has no provider but the CPU's")
    session = create_session(save(stack(2, 128), tmp_path, "external"), quiet())
    assert session.get_providers() == CPU
    assert len(made_report(session).fused) == 2


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_what_onnx_runtime_falls_back_to(strict: bool, tmp_path: Path) -> None:
    """It tries again, with the CPU's, where a provider cannot be had; those that it was built without it leaves out."""
    model = save(stack(2, 128), tmp_path, "external")
    for given in (["NoSuchExecutionProvider"], ["QNNExecutionProvider", *CPU]):
        session = create_session(model, quiet(), given, options=Options(strict=strict))
        assert session.get_providers() == CPU
        assert (len(made_report(session).fused), made_report(session).route) == (2, "borrowed")
