"""ONNX Runtime's telemetry is the user's own: this package switches nothing on, and adds no errors to what is sent.

Nothing is sent from here: the proxy that these processes are given does not exist.
"""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ort_qdq_plugin.model.encoding import small_model
from tests.support import CPU, START, environment, save, stack

# Of the environment: other variables, those of build servers for instance, switch it off too.
_KEPT = ("PATH", "PYTHONPATH", "TMPDIR")

IMPORT = "import onnxruntime"
COMMAND = "import runpy; sys.argv[0] = 'ort-qdq'; runpy.run_module('ort_qdq_plugin', run_name='__main__')"
LOADS = f"""
import onnxruntime as ort
from ort_qdq_plugin import Options, create_session, report_of
routes = []
def load(options, settings):
    session = create_session(sys.argv[1], settings, providers, options=options)
    report = report_of(session)
    routes.append((report.route, report.cache))
    if providers:
        session.set_providers(providers)
providers = {CPU!r}
for settings in (None, ort.SessionOptions()):
    load(Options(strict=True), settings)
    for _ in range(2):
        load(Options(strict=True, cache_dir=sys.argv[2], share_weights=True), settings)
providers, settings = None, ort.SessionOptions()
settings.add_provider("CPUExecutionProvider", {{}})
load(Options(strict=True), settings)
sys.stdout.write(repr(routes))
"""
ROUTES = [
    ("borrowed", ""),
    ("shared", "made"),
    ("shared", "used"),
    ("borrowed", ""),
    *2 * [("shared", "used")],
    ("by path", ""),
]


def run(home: Path, code: str, *arguments: object, **variables: str) -> str:
    """What a process prints whose home this is, with telemetry as ONNX Runtime has it by default."""
    home.mkdir(exist_ok=True)
    given = {name: value for name, value in environment().items() if name in _KEPT}
    given |= {"HOME": str(home), "https_proxy": "http://127.0.0.1:9", **variables}
    command = [sys.executable, "-c", START + code, *map(str, arguments)]
    return subprocess.run(command, env=given, check=True, capture_output=True, text=True, timeout=120).stdout


def files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def events(home: Path) -> list[str]:
    """The names of the events that wait to be sent."""
    [store] = [path for path in files(home) if path.suffix == ".db"]
    with closing(sqlite3.connect(store)) as opened:
        payloads = [bytes(payload) for (payload,) in opened.execute("SELECT payload FROM events")]
    # The name comes first; the letter behind it is no part of it.
    names = [re.search(rb"([A-Z][A-Za-z]{5,})q", payload) for payload in payloads]
    return [name.group(1).decode() for name in names if name is not None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save(stack(3, 128), tmp_path, "external")
    assert isinstance(path, str)
    return Path(path)


@pytest.fixture
def collecting(tmp_path: Path) -> Path:
    """The home of a process whose ONNX Runtime has telemetry."""
    home = tmp_path / "collecting"
    run(home, IMPORT)
    if not files(home):
        pytest.skip("this ONNX Runtime keeps nothing below the home")
    return home


@pytest.mark.usefixtures("collecting")
def test_who_has_switched_it_off_has_no_file_of_it(model: Path, cache: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run(home, LOADS, model, cache, ORT_DISABLE_TELEMETRY="1") == repr(ROUTES)
    assert not files(home)


@pytest.mark.usefixtures("collecting")
def test_helpers_have_it_switched_off(model: Path, cache: Path, tmp_path: Path) -> None:
    """Although their parent has not: they are given another home."""
    code = f"""
import os
{IMPORT}
os.environ["HOME"] = sys.argv[3]
{LOADS}
"""
    home = tmp_path / "of helpers"
    home.mkdir()
    assert run(tmp_path / "home", code, model, cache, home) == repr(ROUTES)
    assert files(tmp_path / "home")
    assert not files(home)


def test_no_errors_are_sent_but_the_users_own(collecting: Path, model: Path, cache: Path, tmp_path: Path) -> None:
    """ONNX Runtime sends every error, but of a hundred sessions one."""
    assert run(collecting, LOADS, model, cache) == repr(ROUTES)
    sent = events(collecting)
    assert "ProcessInfo" in sent
    assert not [name for name in sent if "Error" in name]
    without_weights = tmp_path / "small.onnx"
    without_weights.write_bytes(small_model("Add", file="no-such-file"))
    run(collecting, f"{IMPORT}\ntry: onnxruntime.InferenceSession(sys.argv[1])\nexcept Exception: pass", without_weights)
    assert "RuntimeError" in events(collecting)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "kept"), [({}, False), ({"ORT_DISABLE_TELEMETRY": "0"}, True)])
@pytest.mark.usefixtures("collecting")
def test_commands_have_it_switched_off(given: dict[str, str], kept: bool, model: Path, tmp_path: Path) -> None:
    """Unless the user says otherwise."""
    home = tmp_path / "home"
    with pytest.raises(subprocess.CalledProcessError, match="exit status 2"):
        run(home, COMMAND, "inspect", model.with_name("no-such-model"), **given)
    assert bool(files(home)) is kept
    other = tmp_path / "other"
    with suppress(subprocess.CalledProcessError):
        run(other, COMMAND, "bench", "--runs", "1", "--peers", "cached", model, **given)
    assert bool(files(other)) is kept


@pytest.mark.parametrize("option", [(), ("--no-telemetry",)])
@pytest.mark.usefixtures("collecting")
def test_a_program_that_is_run_has_it_as_the_user_says(option: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path / "home"
    run(home, COMMAND, "run", *option, "--", sys.executable, "-c", IMPORT)
    assert bool(files(home)) is not bool(option)
