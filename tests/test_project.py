"""What the project says in several places, and files that only GitHub or a release reads."""

import re
import subprocess
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from ort_qdq_plugin.ort.installed import OLDEST

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = SETTINGS["project"]
RUN = (ROOT / ".ci/run").read_text("utf-8")
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
PAGES = ["docs/releasing.md", "docs/stability.md", "SECURITY.md", "CHANGELOG.md", ".github/pull_request_template.md"]
HOME = PROJECT["urls"]["Homepage"]


def parts() -> list[str]:
    listed = subprocess.run(["bash", str(ROOT / ".ci/run"), "--list"], check=True, capture_output=True, text=True)
    return listed.stdout.split()


def called(text: str) -> set[str]:
    """The parts of .ci/run that are named behind it."""
    return {part for line in re.findall(r"\.ci/run((?: [a-z-]+)+)", text) for part in line.split() if part[0] != "-"}


def matrix(name: str) -> list[str]:
    """The values of one axis of the workflow's tests."""
    [values] = re.findall(rf"^ +{name}: \[(.+)\]", WORKFLOW, re.MULTILINE)
    return [value.strip(' "') for value in values.split(",")]


def test_the_workflow_runs_all_parts_and_no_others() -> None:
    assert called(WORKFLOW) == set(parts())


@pytest.mark.parametrize("path", [".github/workflows/release.yml", "docs/releasing.md"])
def test_only_parts_that_exist_are_named(path: str) -> None:
    named = called((ROOT / path).read_text("utf-8"))
    assert named
    assert named <= set(parts())


def test_parts_are_defined() -> None:
    assert re.findall(r"^part_(\w+)\(\) \{", RUN, re.MULTILINE) == parts()


def test_an_unknown_part_is_refused() -> None:
    refused = subprocess.run(["bash", str(ROOT / ".ci/run"), "lint", "no-such-part"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: ")


def test_a_part_runs_what_the_readmes_command_leaves_out() -> None:
    pytest_settings = SETTINGS["tool"]["pytest"]["ini_options"]
    left_out = re.findall(r"not (\w+)", pytest_settings["addopts"])
    assert re.findall(r"^    marked='(\w+) or (\w+)'$", RUN, re.MULTILINE) == [tuple(left_out)]
    named = [marker.partition(":")[0] for marker in pytest_settings["markers"]]
    assert set(left_out) <= set(named)


def test_python_versions_are_the_same_everywhere() -> None:
    versions = matrix("python")
    named = [entry.rpartition(" :: ")[2] for entry in PROJECT["classifiers"] if "Python :: 3." in entry]
    assert named == versions
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert SETTINGS["tool"]["mypy"]["python_version"] == versions[0]
    assert SETTINGS["tool"]["ruff"]["target-version"] == f"py{versions[0].replace('.', '')}"
    assert f"| Python | {versions[0]} to {versions[-1]}" in (ROOT / "docs/stability.md").read_text("utf-8")
    assert set(re.findall(r'python-version: "(.+?)"', WORKFLOW)) <= set(versions)


def test_the_oldest_onnx_runtime_is_the_same_everywhere() -> None:
    extras = PROJECT["optional-dependencies"]
    [oldest] = [entry.removeprefix("onnxruntime>=") for entry in extras["cpu"] if entry.startswith("onnxruntime>")]
    assert ".".join(map(str, OLDEST)) == oldest
    assert extras["gpu"] == [f"onnxruntime-gpu>={oldest}"]
    assert f"stays as it is](docs/platforms.md#installing-beside-an-onnx-runtime): {oldest} or newer." in (
        ROOT / "README.md"
    ).read_text("utf-8")
    assert matrix("onnxruntime") == [f"=={oldest}.0", f">={oldest}"]
    assert f'ONNXRUNTIME: ">={oldest}.dev0"' in WORKFLOW
    assert f"ONNXRUNTIME==={oldest}.0 " in (ROOT / "docs/releasing.md").read_text("utf-8")
    assert f"| ONNX Runtime | {oldest} and newer" in (ROOT / "docs/stability.md").read_text("utf-8")


def test_no_build_of_onnx_runtime_is_required() -> None:
    """Installers would put it over the one that is there."""
    needed = [re.split("[<>=]", entry)[0] for entry in PROJECT["dependencies"]]
    assert needed == ["onnx", "numpy"]
    own = {"cpu", "gpu", "real", "genai"}  # the latter two have programs of other people, which require one
    for extra, entries in PROJECT["optional-dependencies"].items():
        assert extra in own or not [entry for entry in entries if entry.startswith("onnxruntime")]


@pytest.mark.parametrize(
    ("python", "system", "machine", "has_it"),
    [
        ("3.11", "linux", "x86_64", True), ("3.13", "linux", "aarch64", True), ("3.13", "win32", "AMD64", True),
        ("3.12", "darwin", "arm64", True), ("3.14", "linux", "x86_64", False), ("3.13", "linux", "riscv64", False),
        ("3.13", "win32", "ARM64", False),
    ],
)  # fmt: skip
def test_the_extensions_come_where_they_have_a_wheel(python: str, system: str, machine: str, has_it: bool) -> None:
    [wanted] = [entry for entry in PROJECT["optional-dependencies"]["cpu"] if "extensions" in entry]
    given = {"python_version": python, "sys_platform": system, "platform_machine": machine}
    marker = Requirement(wanted).marker
    assert marker is not None
    assert marker.evaluate(given) is has_it


def test_the_readme_has_the_commands_that_are_read_from_it() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    markers = re.findall(r"readme_command (\w+)", RUN)
    assert markers == ["install", "test"]
    for marker in markers:
        assert len(re.findall(rf"^<!-- {marker} -->\n```sh\n.*\bpython -m \w+.*\n```$", readme, re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    links = {(ROOT / page).parent / link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)#][^)]*)\)", text)}
    named = {ROOT / name for name in re.findall(r"`([\w./-]+(?:\.(?:md|py|yml|toml)|/[\w.-]+))`", text)}
    assert not [path for path in links | named if not path.exists()]


def test_the_start_up_file_and_the_command_are_installed() -> None:
    wheel = SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["ort_qdq_plugin"]
    [(source, target)] = wheel["force-include"].items()
    assert (ROOT / source).is_file()
    assert target == "ort_qdq_plugin.pth"
    [(name, value)] = PROJECT["scripts"].items()
    assert callable(EntryPoint(name, value, "console_scripts").load())


def test_the_home_is_the_same_everywhere() -> None:
    files = [ROOT / "pyproject.toml", *(ROOT / name for name in PAGES), *(ROOT / ".github").rglob("*.*")]
    homes = re.findall(r"https://github\.com/[\w-]+/ort-qdq-plugin", "".join(path.read_text("utf-8") for path in files))
    assert set(homes) == {HOME}
