"""This package on an emulated 64-bit ARM processor, on a Debian machine of another kind, with nothing but Debian and PyPI.

    python -m conformance.platforms.aarch64 FOLDER [--cpu NAME] [--only GLOB] [--markdown FILE]

Makes in FOLDER, if it is not there yet: qemu-user 11, as ONNX Runtime's wheel does not run in 7.2; Debian's Python for arm64
with the libraries that it needs; an environment with wheels for aarch64. Nothing is installed on the machine. Then each part
(every way to load a model, quick patterns, claims, folders of tests) runs there. The exit code is 1 if one fails. Emulation
takes 10 to 30 times as long as a processor: one to two hours on two cores.

`--cpu` is the processor by qemu's name. ONNX Runtime's kernels differ: `neoverse-n1` (the default) has dot products and
float16, `cortex-a72` neither, `max` all that qemu knows, such as SVE, SME and i8mm.

FOLDER/environment/bin/python is an interpreter like any other, for whatever else should be tried.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conformance.checks import parser, run

__all__ = ["build"]

_ROOT = Path(__file__).resolve().parents[2]
_RELEASE, _PYTHON = "trixie", "3.13"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_WHEELS = ("onnxruntime", "onnxruntime-extensions", "onnx", "numpy", "pytest", "hypothesis", "rich", "shtab")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_26_aarch64", "manylinux2014_aarch64")
_FOLDERS = ("packing", "folding", "ort", "memory", "system", "load", "fusion", "behaviour", "cache", "cli")
# These two load models for minutes, and run tools that are not there.
_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider",
           "--ignore=tests/behaviour/test_lifetime.py", "--ignore=tests/behaviour/test_tools.py")  # fmt: skip
_PARTS = {
    "ways": ("-m", "conformance.platforms.ways"),
    "patterns": ("-m", "conformance.patterns", "--quick"),
    "claims": ("-m", "conformance.claims"),
} | {f"tests/{folder}": (*_PYTEST, f"tests/{folder}") for folder in _FOLDERS}
_SECONDS = 5400  # for a part
_SLOWER = "20"  # what tests multiply the time by that they give to processes

_INTERPRETER = """\
#!/bin/sh
# Python finds its environment by the name that it was started with, and starts others by that name.
exec nice {folder}/qemu/usr/bin/qemu-aarch64 -L {folder}/root -0 "$0" {folder}/root/usr/bin/python{version} "$@"
"""


def build(folder: Path) -> Path:
    """The interpreter below `folder`, which is made unless it is there.

    It is a script that starts the emulator. To register the emulator with the kernel (binfmt_misc) takes root, and changes
    the machine. Below the emulated root there are no programs but Python: the others that tests start are the machine's.

    Raises:
        RuntimeError: A package cannot be had, or its signature is wrong.
    """
    folder = folder.resolve()
    python = folder / "environment" / "bin" / "python"
    if not python.exists():
        folder.mkdir(parents=True, exist_ok=True)
        own = _run("dpkg", "--print-architecture").strip()
        for architecture, suite, packages, made in (
            (own, f"{_RELEASE}-backports", ("qemu-user",), "qemu"),
            ("arm64", _RELEASE, (f"python{_PYTHON}", "libstdc++6"), "root"),
        ):
            with tempfile.TemporaryDirectory(dir=folder) as name:
                for package in _fetched(Path(name), architecture, suite, packages):
                    _run("dpkg-deb", "--extract", package, folder / made)
        if not (folder / "root" / "lib").exists():
            (folder / "root" / "lib").symlink_to("usr/lib")  # what Debian's installer does; programs name their loader there
        _make_environment(folder, python)
    return python


def _run(*command: object, cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"{words} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def _fetched(folder: Path, architecture: str, suite: str, packages: Sequence[str]) -> list[Path]:
    """Debian's packages, and all that they depend on in this suite; apt checks their signatures, in a state of its own."""
    # Where this machine has Debian from.
    indices = _run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    address = next(line.split()[1] for line in indices.splitlines() if line.startswith("Debian "))
    etc, state, cache, status = (folder / name for name in ("etc", "state", "cache", "status"))
    for made in (etc / "preferences.d", state / "lists" / "partial", cache / "archives" / "partial"):
        made.mkdir(parents=True)
    status.touch()  # nothing is installed
    (etc / "sources.list").write_text(f"deb [signed-by={_KEYS}] {address} {suite} main\n", encoding="utf-8")
    settings = {
        "Dir::Etc": etc, "Dir::State": state, "Dir::State::status": status, "Dir::Cache": cache,
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "--quiet", *(f"--option={name}={value}" for name, value in settings.items())]
    _run(*apt, "update")
    _run(*apt, "install", "--yes", "--download-only", "--no-install-recommends", *packages)
    return sorted((cache / "archives").glob("*.deb"))


def _make_environment(folder: Path, python: Path) -> None:
    """A virtual environment with the wheels, and this package's, whose interpreter is a script."""
    environment = folder / "environment"
    packages = environment / "lib" / f"python{_PYTHON}" / "site-packages"
    pip = (sys.executable, "-m", "pip", "--quiet")
    install = (*pip, "install", "--target", packages, "--upgrade", "--no-compile", "--only-binary=:all:")
    _run(*install, "--python-version", _PYTHON, *(f"--platform={platform}" for platform in _PLATFORMS), *_WHEELS)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        _run(*pip, "wheel", "--no-deps", "--wheel-dir", name, _ROOT)
        _run(*install, "--no-deps", *Path(name).glob("*.whl"))
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n", encoding="utf-8")
    python.parent.mkdir(exist_ok=True)
    script = python.with_name("made")
    script.write_text(_INTERPRETER.format(folder=folder, version=_PYTHON), encoding="utf-8")
    script.chmod(0o755)
    script.rename(python)  # last: what was interrupted is made anew


def _main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path, help="where the emulator and the environment are")
    arguments.add_argument("--cpu", default="neoverse-n1", help="the processor (default neoverse-n1)")
    args = arguments.parse_args()
    python = build(args.folder)
    variables = {**os.environ, "QEMU_CPU": args.cpu, "SLOWER": _SLOWER, "ORT_DISABLE_TELEMETRY": "1"}
    variables.pop("PYTHONPATH", None)

    def tried(part: str) -> tuple[list[str], list[str]]:
        command = [str(python), *_PARTS[part]]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, env=variables, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return [part, "**FAIL**", f"not done in {_SECONDS} s"], [part]
        if done.returncode:
            print(done.stdout[-20000:], done.stderr[-4000:], sep="\n")
        said = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        return [part, "**FAIL**" if done.returncode else "holds", said], [part] * bool(done.returncode)

    versions = (
        "import onnxruntime, platform; "
        "print(platform.platform(), 'Python', platform.python_version(), 'ONNX Runtime', onnxruntime.__version__)"
    )
    title = f"{_run(python, '-c', versions).strip()}, {args.cpu}"
    print(title)
    return run({part: part for part in _PARTS}, tried, ["part", "verdict", "what it says"], args, title)


if __name__ == "__main__":
    sys.exit(_main())
