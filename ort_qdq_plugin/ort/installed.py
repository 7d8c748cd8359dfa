"""Whether what this package needs is installed, and what to type where it is not. It imports nothing of that by itself.

ONNX Runtime comes in several builds, each a distribution of its own that installs the same package `onnxruntime`. So this
package cannot require one of them: installers would put it over the one that is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec

from ort_qdq_plugin.model.releases import OLDEST
from ort_qdq_plugin.ort.extensions import MISSING_EXTENSIONS, extensions_are_installed
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN

__all__ = ["OLDEST", "explained", "several_builds", "told_before_of", "too_old"]

_PACKAGE = "onnxruntime"
_PLAIN = "onnxruntime"  # the distribution with the CPU's build

_RECORDED = ".dist-info"

_told: set[str] = set()

# Modules that are imported, and the distributions that have them.
_NEEDED = {"numpy": "numpy", "onnx": "onnx", "google": "protobuf", "google.protobuf": "protobuf"}


def explained(error: Exception) -> str | None:
    """What is not installed as it should be, and what to type; None if the error is about something else."""
    if isinstance(error, ModuleNotFoundError) and error.name in _NEEDED:
        return f"{error.name} is not installed: pip install {_NEEDED[error.name]}"
    if isinstance(error, ImportError) and "numpy" in str(error) and find_spec("numpy") is None:
        # As ONNX Runtime's own library says it.
        return "numpy is not installed: pip install numpy"
    # What is left of a build that was removed is a package without anything in it.
    is_empty = isinstance(error, AttributeError) and getattr(error.obj, "__name__", "") == _PACKAGE
    if is_empty or (isinstance(error, ImportError) and (error.name or "").split(".")[0] == _PACKAGE):
        return several_builds() or _about_the_only_build(error)
    names_extensions = str(error) == MISSING_EXTENSIONS or f"{EXTENSIONS_DOMAIN}:" in str(error)
    if names_extensions and not extensions_are_installed():
        return MISSING_EXTENSIONS
    return None


def several_builds() -> str:
    """What to type where several builds of ONNX Runtime are installed over each other; "" if they are not."""
    for builds in _builds():
        names = [*builds]
        if len(names) > 1:
            wanted = next(name for name in names if name != _PLAIN)
            return (
                f"{' and '.join(names)} are installed over each other, so that parts of each are missing: "
                f"pip uninstall -y {' '.join(names)} && pip install {wanted}"
            )
    return ""


def too_old() -> str:
    """What to type where the only build of ONNX Runtime is too old; "" if it is not."""
    for builds in _builds():
        for name, version in builds.items():
            numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
            if len(builds) > 1 or numbers >= OLDEST:
                return ""
            oldest = ".".join(map(str, OLDEST))
            return f"{name} {version} is too old: pip install --upgrade '{name}>={oldest}', or another build of it"
    return ""


def told_before_of(problem: str) -> bool:
    """Whether this was asked of the problem before in this process: all loads have it, and one of them tells."""
    before = problem in _told
    _told.add(problem)
    return before


def _about_the_only_build(error: Exception) -> str:
    for name in next(_builds(), {}):
        return f"{name} cannot be imported ({error}): pip install --force-reinstall --no-deps {name}"
    if getattr(sys.modules.get(_PACKAGE), "__file__", None):
        return f"ONNX Runtime cannot be imported: {error}"
    return f"ONNX Runtime is not installed: pip install 'ort-qdq-plugin[cpu]', or a build of it such as {_PLAIN}-gpu"


def _builds() -> Iterator[dict[str, str]]:
    """For each folder that modules are imported from, the distributions that have ONNX Runtime's package there, and their
    versions, by name.

    importlib.metadata would read files of all distributions, which takes tenths of a second.
    """
    for folder in dict.fromkeys(sys.path):
        builds = {}
        with suppress(OSError):
            for entry in sorted(os.listdir(folder or os.curdir)):
                # Nightly builds are named "ort-nightly" and the like.
                if entry.startswith((_PLAIN, "ort_")) and entry.endswith(_RECORDED) and _has_package(folder, entry):
                    # Its name is the distribution's, its version and ".dist-info".
                    name, _, version = entry.removesuffix(_RECORDED).partition("-")
                    builds[name.replace("_", "-")] = version
        if builds:
            yield builds


def _has_package(folder: str, entry: str) -> bool:
    # Its lines are a file, its hash and its size (the packaging specifications, "Recording installed projects").
    with suppress(OSError), open(os.path.join(folder, entry, "RECORD"), encoding="utf-8", errors="replace") as record:
        return any(line.startswith(f"{_PACKAGE}/__init__.py,") for line in record)
    return False
