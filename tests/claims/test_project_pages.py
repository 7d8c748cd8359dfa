"""CONTRIBUTING.md, stability.md and releasing.md: commands, names, files and settings of the repository."""

import json
import re
import subprocess
import tomllib
from dataclasses import fields

import pytest

import ort_qdq_plugin
from conformance.fuzz import __main__ as fuzz
from conformance.platforms import provider_patterns, providers
from ort_qdq_plugin import Options, Report, genai, log
from ort_qdq_plugin.fusion import kind
from ort_qdq_plugin.ort.providers import TAKES_FUSED
from tests.claims.pages import text_of
from tests.claims.registry import claim
from tests.claims.running import parser_of
from tests.cli.support import Here
from tests.support import ROOT

CONTRIBUTING, STABILITY, RELEASING = "CONTRIBUTING.md", "docs/stability.md", "docs/releasing.md"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = (ROOT / ".ci/run").read_text()


def workflow(name: str) -> str:
    return (ROOT / ".github/workflows" / name).read_text()


# ---- contributing


@claim(CONTRIBUTING, "`.ci/run --list` names these parts, and `.ci/run PART` runs one alone.")
@claim(CONTRIBUTING, "between the `<!-- install -->` and `<!-- test -->` markers and the end of the code block behind")
@pytest.mark.needs("a shell")
def test_parts_of_ci() -> None:
    listed = subprocess.run([ROOT / ".ci/run", "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert {"install", "suite", "slow", "lint", "conformance", "examples", "package", "real"} <= {*listed}
    refused = subprocess.run([ROOT / ".ci/run", "nonsense"], capture_output=True, text=True)
    assert (refused.returncode, "usage" in refused.stderr) == (2, True)
    for marker in ("install", "test"):
        assert f"<!-- {marker} --> ```sh pip install" in text_of("README.md")


@claim(CONTRIBUTING, "`.ci/run --long` adds the tests that take a while and seldom tell more than the others")
@claim(
    CONTRIBUTING, "`.ci/run --real` adds models written by torch's exporter, Olive and the ONNX Runtime GenAI model builder,"
)
@claim(CONTRIBUTING, "`.ci/run --tools` adds [what ten quantizers write](docs/tools.md)")
@claim(CONTRIBUTING, "`PYTHON` names the interpreter.")
@claim(RELEASING, ".ci/run --long --real --tools")
def test_arguments_of_ci() -> None:
    taken = re.findall(r"^    (--\w+)\)", CI, re.MULTILINE)
    assert taken == ["--list", "--long", "--real", "--tools"]
    assert '"${PYTHON:-python3}" -m venv' in CI


@claim(
    CONTRIBUTING,
    "`python -m pytest` runs the quick suite, `python -m pytest -m slow` more that each commit must pass, and `-m",
)
def test_marks() -> None:
    settings = PYPROJECT["tool"]["pytest"]["ini_options"]
    assert settings["addopts"].endswith("-m 'not slow and not long'")
    assert {mark.partition(":")[0] for mark in settings["markers"]} >= {"slow", "long", "needs"}


@claim(
    CONTRIBUTING,
    "It returns a `Fusion`, whose `emit` writes the nodes, and whose `operands` say where each operand's bytes come",
)
def test_what_a_fusion_has() -> None:
    assert {"emit", "operands"} <= {*dir(kind.Fusion), *getattr(kind.Fusion, "__annotations__", {})}


@claim(
    CONTRIBUTING,
    "A row of `WAYS` in `conformance/platforms/providers.py`, and its name in `provider_patterns.py` beside it.",
)
@claim(CONTRIBUTING, "`TAKES_FUSED` in `ort_qdq_plugin/ort/providers.py`.")
def test_where_providers_are() -> None:
    assert {*provider_patterns._CHECKED} <= {*providers.WAYS}
    assert "CPUExecutionProvider" in TAKES_FUSED


@claim(CONTRIBUTING, "`python -m conformance.patterns`, then `python -m conformance.fuzz --drawn 5000 --mutations")
@claim("docs/measuring.md", "half an hour of the coverage-guided fuzzer atheris on `inspect`")
def test_commands_of_the_recipes() -> None:
    given = parser_of("conformance.fuzz").parse_args(["--drawn", "5000", "--mutations", "20000", "--coverage-guided", "30"])
    assert (given.drawn, given.mutations, given.coverage_guided) == (5000, 20000, 30)
    assert fuzz.__doc__


@claim(CONTRIBUTING, "`ORT_QDQ_PLUGIN_` and the option's name")
def test_names_of_variables() -> None:
    from ort_qdq_plugin.options import options_from_environment

    assert options_from_environment({"ORT_QDQ_PLUGIN_THREADS": "3"}) == Options(threads=3)


@claim(CONTRIBUTING, "under a name that says what it is, with a line in the manifest there.")
def test_regressions_are_in_the_manifest() -> None:
    folder = ROOT / "tests/corpus/regressions"
    (manifest,) = [path for path in folder.iterdir() if path.suffix != ".onnx"]
    told = manifest.read_text("utf-8")
    assert not [path.stem for path in folder.glob("*.onnx") if path.stem not in told]


@claim(CONTRIBUTING, 'messages go to `logging.getLogger("ort_qdq_plugin")`')
@claim(STABILITY, "| the logger `ort_qdq_plugin` |")
def test_the_logger() -> None:
    assert log.NAME == "ort_qdq_plugin"


# ---- stability


@claim(STABILITY, "| the names in `ort_qdq_plugin.__all__` and `ort_qdq_plugin.genai.__all__` |")
def test_public_names() -> None:
    assert all(hasattr(ort_qdq_plugin, name) for name in ort_qdq_plugin.__all__)
    assert sorted(genai.__all__) == ["export", "load", "prepare", "report_of", "warm"]


@claim(STABILITY, "| the attributes of `Report` and of its entries |")
@claim(STABILITY, "and the keys that `--json` prints. There may be more keys |")
def test_keys_of_json(small: str, here: Here) -> None:
    plain = json.loads(here.said("inspect", "--json", small))
    assert {field.name for field in fields(Report)} <= {*plain}


@claim(STABILITY, "- `tests`, `conformance` and `examples`, which are not in the wheel.")
@claim(
    RELEASING,
    "- **Wheel**: the package `ort_qdq_plugin` with its `py.typed`, and beside it the start-up file",
)
def test_what_is_in_the_wheel() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["ort_qdq_plugin"]
    assert wheel["force-include"] == {"ort_qdq_plugin/switch/ort_qdq_plugin.pth": "ort_qdq_plugin.pth"}
    assert (ROOT / "ort_qdq_plugin/py.typed").exists()


# ---- releasing


@claim(RELEASING, "2. **Changelog.** In `CHANGELOG.md`, put the date in place of *Unreleased*.")
@claim(STABILITY, "Every such change is in the [changelog](../CHANGELOG.md).")
def test_the_changelog_has_this_version() -> None:
    first, *_ = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first in ("Unreleased", ort_qdq_plugin.__version__)


@claim(RELEASING, "The second line is for the oldest ONNX Runtime that `pyproject.toml` allows.")
def test_the_oldest_onnx_runtime() -> None:
    (version,) = re.findall(r"ONNXRUNTIME===(\d+\.\d+)\.\d+ \.ci/run", text_of(RELEASING))
    assert PYPROJECT["project"]["optional-dependencies"]["cpu"][0] == f"onnxruntime>={version}"


@claim(
    RELEASING, "That is `python -m build`, `twine check --strict`, and a comparison of both distributions with the checkout."
)
def test_what_package_does() -> None:
    part = CI.split("part_package()")[1].split("\n}")[0]
    assert all(
        command in part for command in ("python -m build", "twine check --strict", "contents source", "contents wheel")
    )


@claim(RELEASING, "refuses a tag that is not the version, and waits for the approval of the environment `pypi`.")
@claim(RELEASING, "| environment `pypi`, with required reviewers, for tags `v*` only |")
def test_the_release_workflow() -> None:
    release = workflow("release.yml")
    assert 'tags: ["v*"]' in release
    assert "environment: pypi" in release
    assert 'test -e "dist/ort_qdq_plugin-${GITHUB_REF_NAME#v}.tar.gz"' in release


@claim(
    RELEASING,
    "The job `nightly` of `.github/workflows/ci.yml` is skipped without it. It may fail without failing the workflow |",
)
@claim(RELEASING, "the jobs `lint`, `test` and `tools` required |")
def test_jobs() -> None:
    jobs = re.findall(r"^  (\w+):$", workflow("ci.yml").split("\njobs:")[1], re.MULTILINE)
    assert jobs == ["lint", "test", "nightly", "tools"]
    nightly = workflow("ci.yml").split("\n  nightly:")[1].split("\n  tools:")[0]
    assert "if: vars.ORT_NIGHTLY_INDEX != ''" in nightly
    assert "continue-on-error: true" in nightly


@claim(RELEASING, "| labels `bug` and `fusion` | the forms in `.github/ISSUE_TEMPLATE` |")
def test_labels() -> None:
    forms = (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")
    labels = {label for form in forms for label in re.findall(r"^labels: \[(\w+)\]", form.read_text(), re.MULTILINE)}
    assert labels == {"bug", "fusion"}


@claim(RELEASING, "Links to files of the repository become addresses at the version's tag; the rule is in")
def test_links_of_the_packages_page() -> None:
    rules = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
    page = (ROOT / "README.md").read_text("utf-8")
    for rule in rules:
        page = re.sub(rule["pattern"], rule["replacement"].replace("$HFPR_VERSION", "1.2.3"), page)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page) if not link.startswith("#")]
    assert links
    assert all(link.startswith("https://") for link in links)
    assert any("/blob/v1.2.3/docs/" in link for link in links)


@claim("SECURITY.md", "<https://github.com/ort-qdq-plugin/ort-qdq-plugin/security/advisories/new>")
def test_where_vulnerabilities_are_reported() -> None:
    assert PYPROJECT["project"]["urls"]["Homepage"] == "https://github.com/ort-qdq-plugin/ort-qdq-plugin"
