"""The environment variable that switches it on: whoever imports onnxruntime, when and in whatever way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from tests.support import CPU, ROOT, linear, save

START_FILE = ROOT / "ort_qdq_plugin" / "switch" / "ort_qdq_plugin.pth"


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
    path = save(linear(Weight()), tmp_path, "file")
    code = f"{importing}\nonnxruntime.InferenceSession({path!r}, providers={CPU!r})\nprint(onnxruntime.__spec__.loader)"
    done = child(code, ORT_QDQ_PLUGIN="1", ORT_QDQ_PLUGIN_LOG="info")
    assert done.returncode == 0, done.stderr
    assert "1 fused" in done.stderr
    assert "_Loader" not in done.stdout


def test_the_log_goes_to_a_file(tmp_path: Path) -> None:
    path, log = save(linear(Weight()), tmp_path, "file"), tmp_path / "log"
    code = f"import onnxruntime\nonnxruntime.InferenceSession({path!r}, providers={CPU!r})"
    for _ in range(2):
        done = child(code, ORT_QDQ_PLUGIN="1", ORT_QDQ_PLUGIN_LOG_FILE=str(log))
        assert (done.returncode, done.stderr) == (0, "")
    assert [line.count("1 fused") for line in log.read_text().splitlines()] == [1, 1]


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    path = save(linear(Weight()), tmp_path, "file")
    code = f"import onnxruntime\nonnxruntime.InferenceSession({path!r}, providers={CPU!r})\n{ACTIVE}\nprint(active())"
    done = child(code, ORT_QDQ_PLUGIN="1", ORT_QDQ_PLUGIN_LOG_FILE=str(tmp_path / "no" / "log"))
    assert (done.stdout, done.stderr.count("ignored"), done.stderr.count("\n")) == ("True\n", 1, 1)


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
parts = ('session', 'switch.activation', 'ort.buffers', 'packing.bits')
names = ['onnxruntime', *(f'ort_qdq_plugin.{part}' for part in parts)]
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
    """Sessions are ours afterwards, only onnxruntime-genai is still waited for, and nobody is told of anything."""
    code = f"""{ACTIVE}{WAYS_TO_IMPORT[way]}
from ort_qdq_plugin.switch import import_hook as awaiting
print(active(), *awaiting._awaited)
import onnxruntime
assert 'ort_qdq' not in str(onnxruntime.__loader__) + str(onnxruntime.__spec__.loader)
"""
    done = child(code, ORT_QDQ_PLUGIN="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "True onnxruntime_genai\n", "")


@pytest.mark.parametrize("first", ["import onnxruntime", "pass"])
def test_an_onnxruntime_genai_that_is_not_as_known(first: str, tmp_path: Path) -> None:
    """Its import does not fail, and what is wrong is told once."""
    (tmp_path / "onnxruntime_genai.py").write_text("here = True")
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    code = f"{ACTIVE}{first}\nimport onnxruntime_genai\nprint(onnxruntime_genai.here, active())"
    done = child(code, ORT_QDQ_PLUGIN="1", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "True True\n")
    assert done.stderr.count("cannot be used for onnxruntime-genai") == 1


def test_a_session_made_first_of_all_is_ours(tmp_path: Path) -> None:
    """Where this package was imported while it was being activated, it must still know the stock method."""
    path = save(linear(Weight()), tmp_path, "file")
    code = f"""
from ort_qdq_plugin import create_session, deactivate, report_of
import onnxruntime
made = [onnxruntime.InferenceSession({path!r}), create_session({path!r})]
deactivate()
made += [create_session({path!r}), onnxruntime.InferenceSession({path!r})]
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
sys.modules['ort_qdq_plugin.switch.activation'] = None
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
    command = [sys.executable, "-m", "program", *([start] if start else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")
