"""choosing.md and faq.md, and who imports onnxruntime as robustness.md says."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, assert_type

import onnxruntime
import pytest

import ort_qdq_plugin
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, Report, create_session, export, inspect, report_of, warm
from ort_qdq_plugin.cli.main import _SHELLS
from tests.claims.pages import blocks, rows_below, text_of
from tests.claims.registry import claim
from tests.support import CPU, ROOT, START, environment, linear, made_report, python, quiet, save, stack

CHOOSING, FAQ = "docs/choosing.md", "docs/faq.md"
_OWN = 100_000  # bytes that models have beside their weights, at the most


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    return str(save(stack(4, 512), tmp_path / "model", "external"))


def size(path: Path) -> int:
    found = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in found if file.is_file())


def about(nbytes: float) -> Any:
    return pytest.approx(nbytes, abs=_OWN)


def test_readers_find_both_pages() -> None:
    for page in ("choosing.md", "faq.md"):
        assert f"(docs/{page})" in text_of("README.md")


# ---- choosing


@claim(CHOOSING, "all weights and ONNX Runtime's copy of them, for good: 2.2 times a model of 4 bits")
@claim(CHOOSING, "a second model, as large as the first")
@claim(CHOOSING, "need no packing: of them, what the column *disk* calls packed is next to nothing.")
@pytest.mark.parametrize("n_major", [False, True])
def test_ways_take_the_disk_that_the_table_says(n_major: bool, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = save(linear(Weight(k=2048, n=1024, n_major=n_major)), tmp_path / "model", "external")
    assert isinstance(path, str)
    whole = size(tmp_path / "model")
    kept = {share: tmp_path / f"kept {share}" for share in (False, True)}
    for share, folder in kept.items():
        warm(path, options=Options(cache_dir=folder / "cache", share_weights=share))
        warm(path, options=Options(cache_dir=folder / "prepared", share_weights=share), portable=True)
    packed = inspect(path).packed_bytes
    assert packed == (0 if n_major else about(whole))
    for name in ("cache", "prepared"):
        assert size(kept[False] / name) == about(packed)
        assert size(kept[True] / name) == about(2.2 * whole)
    export(path, tmp_path / "exported.onnx")
    assert size(tmp_path / "exported.onnx") == about(whole)


@claim(CHOOSING, "| way | take it when | disk | memory | a load |")
def test_all_ways_are_in_the_table() -> None:
    rows = rows_below("docs/choosing.md", "| way | take it when | disk | memory | a load |")
    ways = " ".join(row[0] for row in rows)
    assert all(len(row) == 5 for row in rows)
    for word in (
        "create_session",
        "ORT_QDQ_PLUGIN=1",
        "activate",
        "cache_dir",
        "share_weights",
        "prepared",
        "export",
        "genai",
    ):
        assert word in ways


# ---- questions
@claim(FAQ, "| one session where the package is active | deactivate it meanwhile, as below |")
def test_a_session_is_turned_off_where_the_package_is_active(tmp_path: Path) -> None:
    save(linear(Weight()), tmp_path, "file")
    (block,) = blocks("docs/faq.md", "python")
    code = f"""{START}
{block.replace('("model.onnx")', f'("model.onnx", providers={CPU})')}
other = onnxruntime.InferenceSession("model.onnx", providers={CPU})
from ort_qdq_plugin import report_of
print(report_of(stock), len(report_of(other).fused), other._ort_qdq_state.options == options)
"""
    done = python(code, cwd=tmp_path, variables={"ORT_QDQ_PLUGIN": "1"})
    assert done.stdout.split() == ["None", "1", "True"], done.stderr


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that is known of files without reading their times of access, and what is in them."""
    files = {str(path): path.lstat() for path in [folder, *folder.rglob("*")]}
    return {
        path: (status.st_ino, status.st_mode, status.st_nlink, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for path, status in files.items()
    }


LOADS = """
import sys
import onnxruntime
from ort_qdq_plugin import Options, create_session, export, inspect, report_of, warm
model, elsewhere = sys.argv[1:]
by_path = onnxruntime.SessionOptions()
by_path.add_provider("CPUExecutionProvider", {})
for _ in range(2):
    for options in (Options(strict=True, buffer="file"), Options(strict=True, cache_dir=elsewhere, share_weights=True)):
        create_session(model, options=options).run(None, {"x": [[0.0] * 512]})
    report = report_of(create_session(model, by_path, options=Options(strict=True)))
warm(model, options=Options(cache_dir=f"{elsewhere}/prepared"), portable=True)
export(model, f"{elsewhere}/exported.onnx")
print(inspect(model).route, report.route)
"""


@claim(FAQ, "It never writes to them, and gives them no other name, link, mode or time of change.")
@claim(FAQ, "Nothing goes to your home directory or into the network.")
def test_files_are_left_as_they_are_and_nothing_is_left_elsewhere(model: str, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "here", "elsewhere")}
    for place in places.values():
        place.mkdir()
    before = state(Path(model).parent)
    variables = {name: str(place) for name, place in places.items() if name.isupper()}
    variables["ORT_DISABLE_TELEMETRY"] = "1"
    done = python(LOADS, model, places.pop("elsewhere"), cwd=places["here"], variables=variables)
    assert done.stdout.split() == ["inspect", "by", "path"], done.stderr
    assert state(Path(model).parent) == before
    assert not [path for place in places.values() for path in place.iterdir()]


@claim(FAQ, "It imports nothing unless `ORT_QDQ_PLUGIN` is set.")
@claim(FAQ, "with the variable set, Python would complain of it at each start.")
def test_the_start_up_file_alone_does_nothing_or_complains() -> None:
    """With the package gone: neither -S nor -I lets it be found."""
    folder = str(ROOT / "ort_qdq_plugin/switch")
    code = f"import site; site.addpackage({folder!r}, 'ort_qdq_plugin.pth', set())"
    for variable, complains in (("", False), ("1", True)):
        given = environment(ORT_QDQ_PLUGIN=variable)
        command = [sys.executable, "-I", "-S", "-c", code]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert ("No module named 'ort_qdq_plugin'" in done.stderr) == complains
        assert bool(done.stderr) == complains


@claim(FAQ, "| with | versions | more |")
def test_versions_are_those_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["genai"]]
    rows = {row[0].split(",")[0]: row[1] for row in rows_below("docs/faq.md", "| with | versions | more |")}
    names = {name: name.lower().replace(" runtime", "runtime") for name in rows if name != "Python"}
    for shown, name in names.items():
        (oldest,) = [found[1] for entry in wanted if (found := re.match(rf"{name}>=([\d.]+)", entry))]
        assert rows[shown].startswith(f"{oldest} and newer")
    pythons = [entry.rpartition(" ")[2] for entry in project["classifiers"] if "Python :: 3." in entry]
    assert rows["Python"] == f"{pythons[0]} to {pythons[-1]}"
    (extensions,) = [entry for entry in extras["cpu"] if entry.startswith("onnxruntime-extensions")]
    assert "python_version < '3.14'" in extensions


@claim(FAQ, "To mypy a session is `Any`,")
@claim(FAQ, "The package is typed (`py.typed`)")
def test_what_a_type_checker_sees(model: str) -> None:
    """mypy checks the types that are asserted; here they are what they are."""
    session = create_session(model, quiet(), CPU)
    assert_type(session, Any)
    assert_type(report_of(session), Report | None)
    assert_type(inspect(model).fused[0].k, int)
    with pytest.raises((TypeError, ValueError)):
        Options(accuracy_level="4")  # type: ignore[arg-type]
    assert (ROOT / "ort_qdq_plugin/py.typed").exists()
    assert not (Path(onnxruntime.__file__).parent / "py.typed").exists()


ASKED = {
    "bash": """
source ~/.bashrc
COMP_WORDS=(ort-qdq insp); COMP_CWORD=1
_shtab_ort_qdq ort-qdq
echo "${COMPREPLY[@]}"
""",
    "zsh": "fpath+=(~/.zfunc); autoload -U compinit; compinit -u -D; autoload +X $_comps[ort-qdq]; functions _ort-qdq",
    "tcsh": "source ~/.tcshrc; complete ort-qdq",
}


@claim(FAQ, "| shell | what to type |")
@pytest.mark.needs("a shell")
@pytest.mark.parametrize("shell", _SHELLS)
def test_shells_complete_what_they_are_told(shell: str, tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    lines = {row[0]: row[1].split("`")[1] for row in rows_below("docs/faq.md", "| shell | what to type |")}
    assert lines.keys() == {*_SHELLS}
    (tmp_path / "ort-qdq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ort_qdq_plugin "$@"\n')
    (tmp_path / "ort-qdq").chmod(0o700)
    given = environment(HOME=str(tmp_path), PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    start = {"bash": "--norc", "zsh": "-f", "tcsh": "-f"}[shell]
    told = ""
    for code in (lines[shell], ASKED[shell]):
        done = subprocess.run([shell, start, "-c", code], env=given, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), code
        told = done.stdout
    assert re.search(r"\binspect\b", told)


# ---- robustness


@claim("docs/robustness.md", "do not import onnxruntime;")
@pytest.mark.parametrize("name", ort_qdq_plugin.__all__)
def test_who_imports_onnxruntime(name: str) -> None:
    """A process that forks should not, unless it loads the model."""
    page = text_of("docs/robustness.md")
    sentence = re.search(r"`import ort_qdq_plugin`, .*? do not import onnxruntime; (.*?) do\.", page)
    assert sentence is not None
    imports = name in re.findall(r"`(\w+)`", sentence[1])
    code = f"import sys, ort_qdq_plugin; ort_qdq_plugin.{name}; print('onnxruntime' in sys.modules)"
    assert python(code).stdout.strip() == str(imports)


@claim(FAQ, "If it begins with `stock ONNX Runtime`, nothing was done,")
@claim(FAQ, "`None`: this package did not create the session.")
def test_a_report_says_how_it_was_loaded(model: str) -> None:
    session = create_session(model, quiet(), CPU)
    assert str(report_of(session)) == str(made_report(session))
    assert report_of(onnxruntime.InferenceSession(model, quiet(), CPU)) is None
    disabled = quiet()
    disabled.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert str(report_of(create_session(model, disabled, CPU))).startswith("stock ONNX Runtime")
