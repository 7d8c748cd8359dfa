"""Programs that create InferenceSessions themselves: from code, and by one environment variable."""

from __future__ import annotations

import inspect as python_inspect
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from conformance.patterns import Weight
from ort_qdq_plugin import Options, activate, create_session, deactivate, report_of
from ort_qdq_plugin.activation import options_from_environment
from tests.support import CPU, ROOT, linear

START_FILE = ROOT / "ort_qdq_plugin" / "ort_qdq_plugin.pth"


@pytest.fixture
def activated() -> Iterator[None]:
    activate()
    yield
    deactivate()


def qdq_model() -> bytes:
    return bytes(linear(Weight()).SerializeToString())


def fused(session: ort.InferenceSession) -> int | None:
    report = report_of(session)
    return None if report is None else len(report.fused)


def test_sessions_made_by_others_are_loaded_by_us(activated: None) -> None:
    assert fused(ort.InferenceSession(qdq_model(), providers=CPU)) == 1


def test_the_class_stays_what_it_is(activated: None) -> None:
    signature = python_inspect.signature(ort.InferenceSession)
    session = ort.InferenceSession(qdq_model(), providers=CPU)
    assert type(session) is ort.InferenceSession
    assert pickle.loads(pickle.dumps(ort.InferenceSession)) is ort.InferenceSession
    deactivate()
    assert python_inspect.signature(ort.InferenceSession) == signature


def test_a_subclass_made_before_counts_too() -> None:
    class Mine(ort.InferenceSession):  # type: ignore[misc]
        pass

    activate()
    try:
        assert fused(Mine(qdq_model(), providers=CPU)) == 1
    finally:
        deactivate()


def test_deactivated_is_stock_again(activated: None) -> None:
    during = ort.InferenceSession(qdq_model(), providers=CPU)
    deactivate()
    assert fused(ort.InferenceSession(qdq_model(), providers=CPU)) is None
    assert fused(during) == 1
    during.set_providers(CPU)


def test_create_session_keeps_its_own_options(activated: None) -> None:
    activate(Options(accuracy_level=4))
    model, x = qdq_model(), np.random.default_rng(0).standard_normal((3, 64), dtype=np.float32)
    name = ort.InferenceSession(model, providers=CPU).get_inputs()[0].name
    shape = ort.InferenceSession(model, providers=CPU).get_inputs()[0].shape
    x = np.resize(x, (3, shape[1]))
    exact = create_session(model, None, CPU, options=Options(accuracy_level=0)).run(None, {name: x})[0]
    rounded = ort.InferenceSession(model, providers=CPU).run(None, {name: x})[0]
    assert not np.array_equal(exact, rounded)


def child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code behind the line that every start of an interpreter runs where the package is installed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_QDQ")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    code = f"import sys; exec(open({str(START_FILE)!r}).read())\n{code}"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_nothing_is_imported_when_the_variable_is_unset() -> None:
    done = child("print('ort_qdq_plugin' in sys.modules, len(sys.meta_path))")
    plain = subprocess.run([sys.executable, "-c", "import sys; print(len(sys.meta_path))"], capture_output=True, text=True)
    assert done.stdout.split() == ["False", plain.stdout.strip()], done.stderr


def test_nothing_heavy_is_imported_when_it_is_set() -> None:
    done = child("print([m for m in ('numpy', 'onnx', 'onnxruntime') if m in sys.modules])", ORT_QDQ_PLUGIN="1")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("importing", ["import onnxruntime", "from onnxruntime import InferenceSession; import onnxruntime"])
def test_the_variable_is_enough(importing: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(qdq_model())
    code = f"{importing}\nonnxruntime.InferenceSession({str(path)!r}, providers={CPU!r})\nprint(onnxruntime.__spec__.loader)"
    done = child(code, ORT_QDQ_PLUGIN="1", ORT_QDQ_PLUGIN_LOG="info")
    assert done.returncode == 0, done.stderr
    assert "1 fused" in done.stderr
    assert "_Loader" not in done.stdout


def test_the_environment_gives_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {"ACCURACY_LEVEL": "0", "BUFFER": "memory", "SPILL_DIR": str(tmp_path), "THREADS": "3", "STRICT": "1"}
    options = options_from_environment({f"ORT_QDQ_PLUGIN_{name}": value for name, value in given.items()})
    assert options == Options(accuracy_level=0, buffer="memory", spill_dir=str(tmp_path), threads=3, strict=True)
    assert not caplog.records


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCURACY_LEVEL", "9"),
        ("ACCURACY_LEVEL", "x"),
        ("BUFFER", "disk"),
        ("SPILL_DIR", "/no/such"),
        ("THREADS", "0"),
        ("STRICT", "?"),
    ],
)
def test_nonsense_in_the_environment_is_one_warning(variable: str, value: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        assert options_from_environment({f"ORT_QDQ_PLUGIN_{variable}": value}) == Options()
    assert [f"ORT_QDQ_PLUGIN_{variable}" in record.getMessage() for record in caplog.records] == [True]


def test_operators_of_the_extensions_need_no_registration() -> None:
    model = linear(Weight())
    model.graph.node.append(helper.make_node("StringUpper", ["text"], ["upper"], domain="ai.onnx.contrib"))
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    model.graph.output.append(helper.make_tensor_value_info("upper", TensorProto.STRING, [1]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    onnx.checker.check_model(linear(Weight()))
    session = create_session(bytes(model.SerializeToString()), None, CPU)
    assert fused(session) == 1
    assert session.run(["upper"], {"text": np.array(["abc"]), **_zeros(session)})[0] == ["ABC"]


def _zeros(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    return {
        value.name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape], np.float32)
        for value in session.get_inputs()
        if value.type == "tensor(float)"
    }
