"""The environment variable that switches it on: whoever imports onnxruntime, when and in whatever way."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from conformance.drawing.weight import Weight
from tests.support import CPU, ROOT, START, environment, linear, python, save

ACTIVE = """
def active():
    import onnxruntime
    return hasattr(onnxruntime.InferenceSession._create_inference_session, "__wrapped__")
"""


def child(code: str, variable: str | None = "1", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code behind the line that every start of an interpreter runs where the package is installed."""
    given = {} if variable is None else {"ORT_QDQ_PLUGIN": variable}
    return python(START + code, variables=given | variables)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(save(linear(Weight()), tmp_path, "file"))


def creating(path: str, importing: str = "import onnxruntime") -> str:
    return f"{importing}\nonnxruntime.InferenceSession({path!r}, providers={CPU!r})"


@pytest.mark.parametrize(("value", "imported", "waits"), [
    (None, "[]", False), ("", "[]", False), *((value, "['ort_qdq_plugin']", False) for value in ("0", "off", "no")),
    ("1", "['ort_qdq_plugin']", True), ("2", "['ort_qdq_plugin']", True),
])  # fmt: skip
def test_nothing_heavy_is_imported(value: str | None, imported: str, waits: bool) -> None:
    """And nothing is waited for if the variable says no."""
    modules = "[name for name in ('ort_qdq_plugin', 'numpy', 'onnx', 'onnxruntime') if name in sys.modules]"
    done = child(f"print({modules}, any('ort_qdq' in str(finder) for finder in sys.meta_path))", value)
    assert done.stdout.strip() == f"{imported} {waits}", done.stderr


@pytest.mark.parametrize("importing", ["import onnxruntime", "from onnxruntime import InferenceSession; import onnxruntime"])
def test_the_variable_is_enough(importing: str, path: str) -> None:
    done = child(f"{creating(path, importing)}\nprint(onnxruntime.__spec__.loader)", ORT_QDQ_PLUGIN_LOG="info")
    assert done.returncode == 0, done.stderr
    assert "1 fused" in done.stderr
    assert "_Loader" not in done.stdout


@pytest.mark.parametrize("value", ["2", "ture", " enabled "])
def test_a_value_that_is_neither_on_nor_off(value: str, path: str) -> None:
    """It is told of once, when the program imports onnxruntime, which stays as it is."""
    assert child("print('done')", value).stderr == ""
    code = f"{ACTIVE}{creating(path)}\nprint(active())\nimport onnxruntime_genai"
    (folder := Path(path).parent / "modules").mkdir()
    (folder / "onnxruntime_genai.py").touch()
    done = child(code, value, PYTHONPATH=os.pathsep.join([str(ROOT), str(folder)]), ORT_QDQ_PLUGIN_STRICT="?")
    told = f"ort-qdq-plugin: ORT_QDQ_PLUGIN is {value!r}, must be 1 or 0: ort-qdq-plugin is not used\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", told)


def test_misspelt_variables_are_told_of(path: str) -> None:
    """And do not keep the package from being used."""
    given = {"ORT_QDQ_PLUGIN_ACURACY_LEVEL": "0", "ORT_QDQ_PLUGIN_LOG": "loud", "ORT_QDQ_PLUGIN_THREADS": "many"}
    done = child(f"{ACTIVE}{creating(path)}\nprint(active(), 'difflib' in sys.modules)", **given)
    assert (done.returncode, done.stdout) == (0, "True True\n")
    assert done.stderr.replace("ort-qdq-plugin: ", "").splitlines() == [
        "ORT_QDQ_PLUGIN_LOG is 'loud', must be one of debug, info, warning, error, critical: ignored",
        "ORT_QDQ_PLUGIN_THREADS is 'many', must be a whole number of at least 1: ignored",
        "ORT_QDQ_PLUGIN_ACURACY_LEVEL is no variable of this package: ignored; did you mean ORT_QDQ_PLUGIN_ACCURACY_LEVEL?",
    ]


def test_without_the_switch_other_variables_do_nothing(path: str) -> None:
    done = child(f"{ACTIVE}{creating(path)}\nprint(active())", None, ORT_QDQ_PLUGIN_STRICT="?", ORT_QDQ_PLUGIN_FOO="1")
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("first", ["", "import onnxruntime"])
def test_a_program_may_switch_it_off(first: str, path: str) -> None:
    """Whether it has imported onnxruntime before or not, and on again."""
    code = f"""
{first}
import ort_qdq_plugin
ort_qdq_plugin.deactivate()
{creating(path)}
print(active(), any('ort_qdq' in str(finder) for finder in sys.meta_path))
ort_qdq_plugin.activate()
print(active())
"""
    done = child(ACTIVE + code, ORT_QDQ_PLUGIN_LOG="info")
    assert (done.stdout.split(), done.stderr) == (["False", "False", "True"], "")


def test_the_log_goes_to_a_file(path: str, tmp_path: Path) -> None:
    for _ in range(2):
        done = child(creating(path), ORT_QDQ_PLUGIN_LOG_FILE=str(tmp_path / "log"))
        assert (done.returncode, done.stderr) == (0, "")
    assert [line.count("1 fused") for line in (tmp_path / "log").read_text().splitlines()] == [1, 1]


def test_the_log_goes_to_a_file_in_the_home_directory(path: str, tmp_path: Path) -> None:
    done = child(creating(path), ORT_QDQ_PLUGIN_LOG_FILE="~/log", HOME=str(tmp_path), USERPROFILE=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 fused" in (tmp_path / "log").read_text()


def test_a_file_that_cannot_be_written_is_one_warning(path: str, tmp_path: Path) -> None:
    done = child(f"{creating(path)}\n{ACTIVE}\nprint(active())", ORT_QDQ_PLUGIN_LOG_FILE=str(tmp_path / "no" / "log"))
    assert (done.stdout, done.stderr.count("ignored"), done.stderr.count("\n")) == ("True\n", 1, 1)


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
from types import SimpleNamespace
class Finder:
    asked = False
    def find_spec(self, name, path=None, target=None):
        if name != 'onnxruntime' or self.asked:
            return None
        self.asked = True
        spec = find_spec(name)
        inner = spec.loader
        spec.loader = SimpleNamespace(create_module=inner.create_module, exec_module=inner.exec_module)
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
from concurrent.futures import ThreadPoolExecutor
barrier = threading.Barrier(8)
def work(_):
    barrier.wait()
    return active()
with ThreadPoolExecutor(8) as threads:
    assert [*threads.map(work, range(8))] == [True] * 8
""",
    "this package first": "from ort_qdq_plugin import create_session",
    "this package's activate first": "from ort_qdq_plugin import activate",
    "this package meanwhile": """
import importlib, threading
from concurrent.futures import ThreadPoolExecutor
import numpy, onnx  # which cannot stand it
parts = ('session', 'switch.activation', 'ort.buffers', 'packing.bits')
names = ['onnxruntime', *(f'ort_qdq_plugin.{part}' for part in parts)]
barrier = threading.Barrier(len(names))
def work(name):
    barrier.wait()
    importlib.import_module(name)
with ThreadPoolExecutor(len(names)) as threads:
    list(threads.map(work, names))
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
    done = child(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True onnxruntime_genai\n", "")


@pytest.mark.parametrize("first", ["import onnxruntime", "pass"])
def test_an_onnxruntime_genai_that_is_not_as_known(first: str, tmp_path: Path) -> None:
    """Its import does not fail, and what is wrong is told once."""
    (tmp_path / "onnxruntime_genai.py").write_text("here = True")
    code = f"{ACTIVE}{first}\nimport onnxruntime_genai\nprint(onnxruntime_genai.here, active())"
    done = child(code, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert (done.returncode, done.stdout) == (0, "True True\n")
    assert done.stderr.count("is used without ort-qdq-plugin") == 1


def test_a_session_made_first_of_all_is_ours(path: str) -> None:
    """Where this package was imported while it was being activated, it must still know the stock method."""
    code = f"""
from ort_qdq_plugin import create_session, deactivate, report_of
import onnxruntime
made = [onnxruntime.InferenceSession({path!r}), create_session({path!r})]
deactivate()
made += [create_session({path!r}), onnxruntime.InferenceSession({path!r})]
print([len(report_of(session).fused) if report_of(session) else None for session in made])
"""
    done = child(code)
    assert done.stdout == "[1, 1, 1, None]\n"
    assert "cannot" not in done.stderr


def test_without_onnxruntime_nothing_changes() -> None:
    code = """
sys.path[:] = [place for place in sys.path if not place.endswith('-packages')]
from importlib.util import find_spec
assert find_spec('onnxruntime') is None
import onnxruntime
"""
    done = child(code)
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
    done = child(code)
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


@pytest.mark.parametrize(
    "start", [None, "spawn", *(pytest.param(name, marks=pytest.mark.needs("fork")) for name in ("fork", "forkserver"))]
)
def test_modules_that_are_run_and_processes_that_they_start(start: str | None, tmp_path: Path) -> None:
    """The parent has not imported onnxruntime."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "sitecustomize.py").write_text(START)
    variables = environment(ORT_QDQ_PLUGIN="1", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    command = [sys.executable, "-m", "program", *([start] if start else [])]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")
