"""Installing this checkout into fresh environments: beside builds of ONNX Runtime, without any, and over two at once.

    python -m conformance.platforms.installing [--only GLOB] [--python PYTHON ...] [--markdown FILE]

Each row is a virtual environment of its own, made with each of these interpreters (by default with this one). It downloads
what it installs, some 300 MB for onnxruntime-gpu. Any interpreter runs it: it imports nothing that has to be installed.

A row holds if no file of the build that was there changes, if its execution providers stay, and if a model loads. Where
there is no build, or two are over each other, it holds if typing what the one sentence says repairs the environment.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from conformance.checks import parser, run

_CHECKOUT = Path(__file__).resolve().parents[2]
_SECONDS = 600  # for one command: downloads are slow at times
_PROVIDERS = "import json, onnxruntime as o; print(json.dumps([o.__version__, o.get_available_providers()]))"
_LOAD = """
import json, sys
from pathlib import Path
from ort_qdq_plugin import create_session, report_of
from ort_qdq_plugin.cli.demo_model import Decoder, write_model
path = write_model(Path(sys.argv[1]), False, Decoder(layers=1, width=64, gated=128, vocabulary=256))
report = report_of(create_session(str(path), providers=["CPUExecutionProvider"]))
print(json.dumps([report.route, len(report.fused), report.stock_detail]))
"""
_IMPORT = "from ort_qdq_plugin import create_session"


class _Wrong(Exception):
    """Something does not hold."""


class _NoWheel(Exception):
    """The build has none for this Python and system."""


class _Environment:
    """A virtual environment. Commands run in its folder, so that nothing is imported from the checkout."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self._variables = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ORT_QDQ_PLUGIN"))
        }
        self._run(python, "-m", "venv", str(folder))
        self.python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")

    def pip(self, *arguments: str) -> None:
        self._run(self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)

    def install_build(self, build: str) -> None:
        try:
            self.pip("install", "--only-binary", build, build)
        except _Wrong as problem:
            if "No matching distribution" in str(problem):
                raise _NoWheel(f"{build} has no wheel for it") from problem
            raise

    def type(self, command: str) -> None:
        """What a sentence says to type: pip commands, of this environment."""
        for part in command.split(" && "):
            words = part.replace("'", "").split()
            assert words[0] == "pip", command
            self.pip(*(f"{_CHECKOUT}[cpu]" if word == "ort-qdq-plugin[cpu]" else word for word in words[1:]))

    def json(self, code: str, *arguments: str) -> Any:
        return json.loads(self._run(self.python, "-c", code, *arguments).splitlines()[-1])

    def says(self, *arguments: str) -> tuple[int, str]:
        """The exit code of Python with these arguments, and the last line that it writes to stderr."""
        done = self._started(self.python, *arguments)
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]

    def files(self) -> dict[str, str]:
        """Hashes of all files of ONNX Runtime's package, and of what pip knows of its builds."""
        (packages,) = self.folder.glob("[Ll]ib/**/site-packages")
        paths = [path for place in packages.glob("onnxruntime*") for path in place.rglob("*")]
        kept = [path for path in paths if path.is_file() and path.suffix != ".pyc"]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}

    def _run(self, *command: str) -> str:
        done = self._started(*command)
        if done.returncode:
            raise _Wrong(f"{' '.join(command)[-200:]}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def _started(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder.parent, env=self._variables, check=False, capture_output=True, text=True,
            errors="replace", timeout=_SECONDS,
        )  # fmt: skip


def _loads(environment: _Environment) -> str:
    route, fused, detail = environment.json(_LOAD, str(environment.folder / "model"))
    return f"a load: {route}, {fused} fused" + (f" ({detail})" if detail else "")


def _beside(build: str, environment: _Environment) -> str:
    environment.install_build(build)
    version, providers = environment.json(_PROVIDERS)
    before = environment.files()
    environment.pip("install", str(_CHECKOUT))
    if environment.files() != before:
        raise _Wrong("files of the build have changed")
    if environment.json(_PROVIDERS) != [version, providers]:
        raise _Wrong("its execution providers have changed")
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    return f"{version}, {len(before)} files as before, providers {names}; {_loads(environment)}"


def _extra(extra: str, environment: _Environment) -> str:
    environment.pip("install", f"{_CHECKOUT}[{extra}]")
    version, _ = environment.json(_PROVIDERS)
    return f"{version}; {_loads(environment)}"


def _without(environment: _Environment) -> str:
    environment.pip("install", str(_CHECKOUT))
    return _repaired(environment)


def _over_each_other(environment: _Environment) -> str:
    environment.install_build("onnxruntime-openvino")
    _, providers = environment.json(_PROVIDERS)
    # As a requirement of another package does it.
    environment.pip("install", "--upgrade", "onnxruntime", str(_CHECKOUT))
    _, left = environment.json(_PROVIDERS)
    if set(providers) <= set(left):
        raise _Wrong("no execution provider was lost")
    command = [*_COMMAND, "cache", "list", "--dir", str(environment.folder)]
    code, said = environment.says(*command)
    environment.type(_what_to_type(said))
    if code or environment.json(_PROVIDERS)[1] != providers or environment.says(*command) != (0, ""):
        raise _Wrong(f"exit code {code}, and typing it does not repair it: {said}")
    return f"{said}; {_loads(environment)}"


def _half_removed(environment: _Environment) -> str:
    environment.install_build("onnxruntime-openvino")
    environment.pip("install", "--upgrade", "onnxruntime", str(_CHECKOUT))
    environment.pip("uninstall", "--yes", "onnxruntime")
    return _repaired(environment)


_COMMAND = ("-m", "ort_qdq_plugin")


def _repaired(environment: _Environment) -> str:
    """Where nothing loads: the sentence, from an import and from a command; typed, it repairs the environment."""
    code, said = environment.says("-c", _IMPORT)
    if code != 1 or not said.startswith("ImportError: "):
        raise _Wrong(f"importing: exit code {code}: {said}")
    sentence = said.removeprefix("ImportError: ")
    code, said = environment.says(*_COMMAND, "export", str(_CHECKOUT / "no-such-model"), "out")
    # Commands refuse a build that is too old before they import it.
    if code != 2 or (sentence not in said and " is too old: pip install" not in said):
        raise _Wrong(f"a command: exit code {code}: {said}")
    environment.type(_what_to_type(sentence))
    return f"{sentence}; then {_loads(environment)}"


def _what_to_type(sentence: str) -> str:
    command = sentence[sentence.index("pip ") :].partition(", or ")[0]
    return command.replace("uninstall -y", "uninstall --yes")


_WAYS: dict[str, Callable[[_Environment], str]] = {
    "[cpu]": lambda environment: _extra("cpu", environment),
    "beside onnxruntime-gpu": lambda environment: _beside("onnxruntime-gpu", environment),
    "beside onnxruntime-openvino": lambda environment: _beside("onnxruntime-openvino", environment),
    "without any ONNX Runtime": _without,
    "onnxruntime over onnxruntime-openvino": _over_each_other,
    "one of the two removed": _half_removed,
}


class _Row(NamedTuple):
    way: str
    python: str

    @property
    def version(self) -> str:
        asked = subprocess.run(
            [self.python, "-c", "import platform; print(platform.python_version())"],
            check=True,
            capture_output=True,
            text=True,
        )
        return asked.stdout.strip()


def _tried(row: _Row) -> tuple[list[str], list[str]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        try:
            environment = _Environment(Path(name) / "environment", row.python)
            return [row.way, row.version, "holds", _WAYS[row.way](environment)], []
        except _NoWheel as why:
            return [row.way, row.version, "-", str(why)], []
        except (_Wrong, subprocess.TimeoutExpired, ValueError) as problem:
            return [row.way, row.version, "**FAIL**", f"{type(problem).__name__}: {problem}"], [row.way]


def _main() -> int:
    made = parser(__doc__)
    made.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters, by default this one")
    args: argparse.Namespace = made.parse_args()
    rows = {f"{way} {python}": _Row(way, python) for python in args.python for way in _WAYS}
    return run(rows, _tried, ["environment", "Python", "verdict", "what was found"], args, "Installing")


if __name__ == "__main__":
    sys.exit(_main())
