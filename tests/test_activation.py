"""Programs that create InferenceSessions themselves: from code, and by one environment variable."""

from __future__ import annotations

import inspect as python_inspect
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, activate, create_session, deactivate, report_of
from ort_qdq_plugin.activation import options_from_environment
from tests.support import CPU, ROOT, linear, quiet, result

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


@pytest.mark.parametrize("value", ["", "0", "off", "no", "2"])
def test_other_values_wait_for_nothing(value: str) -> None:
    done = child("print(any('ort_qdq' in str(finder) for finder in sys.meta_path))", ORT_QDQ_PLUGIN=value)
    assert done.stdout.strip() == "False", done.stderr


ACTIVE = """
def active():
    import onnxruntime
    return hasattr(onnxruntime.InferenceSession._create_inference_session, "__wrapped__")
"""

WAYS_TO_IMPORT = {
    "a submodule first": "import onnxruntime.capi._pybind_state",
    "import_module": "import importlib; importlib.import_module('onnxruntime')",
    "only asked for": "from importlib.util import find_spec; assert find_spec('onnxruntime') is not None",
    "asked for in vain": """
from importlib.util import find_spec
path, sys.path[:] = sys.path[:], []
assert find_spec('onnxruntime') is None
sys.path[:] = path
""",
    "executed by hand": """
from importlib.util import find_spec, module_from_spec
spec = find_spec('onnxruntime')
sys.modules['onnxruntime'] = module = module_from_spec(spec)
spec.loader.exec_module(module)
""",
    "lazily": """
from importlib.util import LazyLoader, find_spec, module_from_spec
spec = find_spec('onnxruntime')
spec.loader = loader = LazyLoader(spec.loader)
sys.modules['onnxruntime'] = module = module_from_spec(spec)
loader.exec_module(module)
module.InferenceSession
""",
    "reloaded": "import importlib, onnxruntime; importlib.reload(onnxruntime)",
    "again after a failure": """
path, sys.path[:] = sys.path[:], []
try:
    import onnxruntime
except ModuleNotFoundError as error:
    assert (str(error), error.name) == ("No module named 'onnxruntime'", 'onnxruntime')
else:
    raise AssertionError
sys.path[:] = path
""",
    "again after a failure inside": """
import importlib, os, tempfile
with tempfile.TemporaryDirectory() as folder:
    open(os.path.join(folder, 'onnxruntime.py'), 'w').write('raise ImportError("broken")')
    sys.path.insert(0, folder)
    try:
        import onnxruntime
    except ImportError as error:
        assert str(error) == 'broken'
    sys.path.remove(folder)
importlib.invalidate_caches()
""",
    "through a loader that others put around ours": """
from importlib.util import find_spec
class Around:
    def __init__(self, inner):
        self.inner = inner
    def create_module(self, spec):
        return self.inner.create_module(spec)
    def exec_module(self, module):
        self.inner.exec_module(module)
class Finder:
    asked = False
    def find_spec(self, name, path=None, target=None):
        if name != 'onnxruntime' or self.asked:
            return None
        self.asked = True
        spec = find_spec(name)
        spec.loader = Around(spec.loader)
        return spec
sys.meta_path.insert(0, Finder())
""",
    "from an archive": """
import importlib.util, os, tempfile, zipfile
real = importlib.util.find_spec('onnxruntime').submodule_search_locations[0]
folder = tempfile.TemporaryDirectory()
archive = os.path.join(folder.name, 'a.zip')
with zipfile.ZipFile(archive, 'w') as file:
    file.writestr('onnxruntime/__init__.py', f'__path__.append({real!r}); exec(open({real!r} + "/__init__.py").read())')
sys.path.insert(0, archive)
import onnxruntime
assert archive in onnxruntime.__file__
folder.cleanup()
""",
    "by many threads": """
import threading
found, barrier = [], threading.Barrier(8)
def work():
    barrier.wait()
    found.append(active())
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert found == [True] * 8
""",
    "this package first": "from ort_qdq_plugin import create_session",
    "this package's activate first": "from ort_qdq_plugin import activate",
    "this package meanwhile": """
import importlib, threading
import numpy, onnx  # which cannot stand it
names = ['onnxruntime', *(f'ort_qdq_plugin.{name}' for name in ('session', 'activation', 'memory.handover', 'packing.bits'))]
barrier, failures = threading.Barrier(len(names)), []
def work(name):
    barrier.wait()
    try:
        importlib.import_module(name)
    except Exception as error:
        failures.append(error)
threads = [threading.Thread(target=work, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
""",
}


@pytest.mark.parametrize("way", WAYS_TO_IMPORT)
def test_however_onnxruntime_is_imported(way: str) -> None:
    """Sessions are ours afterwards, nothing of the waiting is left, and nobody is told of anything."""
    code = f"""{ACTIVE}{WAYS_TO_IMPORT[way]}
print(active(), [str(finder) for finder in sys.meta_path if 'ort_qdq' in str(finder)])
import onnxruntime
assert 'ort_qdq' not in str(onnxruntime.__loader__) + str(onnxruntime.__spec__.loader)
"""
    done = child(code, ORT_QDQ_PLUGIN="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True []\n", "")


def test_a_session_made_first_of_all_is_ours(tmp_path: Path) -> None:
    """Where this package was imported while it was being activated, it must still know the stock method."""
    path = tmp_path / "m.onnx"
    path.write_bytes(qdq_model())
    code = f"""
from ort_qdq_plugin import create_session, deactivate, report_of
import onnxruntime
made = [onnxruntime.InferenceSession({str(path)!r}), create_session({str(path)!r})]
deactivate()
made += [create_session({str(path)!r}), onnxruntime.InferenceSession({str(path)!r})]
print([len(report_of(session).fused) if report_of(session) else None for session in made])
"""
    done = child(code, ORT_QDQ_PLUGIN="1")
    assert done.stdout == "[1, 1, 1, None]\n"
    assert "cannot" not in done.stderr


def test_without_onnxruntime_nothing_changes() -> None:
    code = """
sys.path[:] = [place for place in sys.path if not place.endswith('-packages')]
from importlib.util import find_spec
assert find_spec('onnxruntime') is None
import onnxruntime
"""
    done = child(code, ORT_QDQ_PLUGIN="1")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'onnxruntime'"


def test_a_failing_activation_is_one_line() -> None:
    """Also where warnings are errors."""
    code = """
import warnings
warnings.simplefilter('error')
sys.modules['ort_qdq_plugin.activation'] = None
import onnxruntime
print(onnxruntime.__version__)
"""
    done = child(code, ORT_QDQ_PLUGIN="1")
    assert done.stdout.strip() == ort.__version__
    assert [line.startswith("cannot be activated: ModuleNotFoundError") for line in done.stderr.splitlines()] == [True]


PROGRAM = f"""
import multiprocessing, sys
{ACTIVE}
if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(active())
    else:
        with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
            print(pool.apply(active))
"""


@pytest.mark.parametrize("start", [None, "fork", "forkserver", "spawn"])
def test_modules_that_are_run_and_processes_that_they_start(start: str | None, tmp_path: Path) -> None:
    """The parent has not imported onnxruntime."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "sitecustomize.py").write_text(START_FILE.read_text())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "ORT_QDQ_PLUGIN": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "program", *([start] if start else [])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_switching_while_others_create_sessions() -> None:
    """Each session is either ours or stock's, and right; afterwards everything is as before."""
    model, method = qdq_model(), ort.InferenceSession._create_inference_session
    wanted = result(create_session(model, quiet(), CPU))
    stop = threading.Event()

    def create() -> set[int | None]:
        seen: set[int | None] = set()
        while not stop.is_set() or not seen:
            session = ort.InferenceSession(model, quiet(), providers=CPU)
            np.testing.assert_array_equal(result(session), wanted)
            seen.add(fused(session))
        return seen

    def switch() -> None:
        for _ in range(200):
            activate()
            deactivate()

    with ThreadPoolExecutor(5) as executor:
        creating = [executor.submit(create) for _ in range(3)]
        for switching in [executor.submit(switch) for _ in range(2)]:
            switching.result()
        stop.set()
        assert set().union(*(future.result() for future in creating)) <= {1, None}
    assert ort.InferenceSession._create_inference_session is method


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
