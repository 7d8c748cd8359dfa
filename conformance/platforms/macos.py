"""This package as on macOS, simulated on Linux.

    python -m conformance.platforms.macos [--ways] [--pytest ARGUMENTS...]

Runs `python -m conformance.platforms.ways` and the suite's portable part in an environment in which every interpreter takes
itself for one of macOS (`simulated_macos`). Tests of what macOS lacks are skipped. The exit code is not 0 if one fails.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

__all__: list[str] = []

_ROOT = Path(__file__).parents[2]
_FOLDERS = ("system", "memory", "cache", "load", "ort", "packing", "model", "behaviour", "cli", "switch")


def _simulated(folder: Path) -> str:
    """An interpreter with the packages that this one has. It, and those that it starts, take themselves for one of macOS."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    places = [path for path in sys.path if path.endswith("-packages")]
    (packages / "simulated.pth").write_text(
        f"import sys; sys.path.insert(0, {str(_ROOT)!r}); import conformance.platforms.simulated_macos\n"
        f"import site; list(map(site.addsitedir, {places!r}))\n"
    )
    return str(folder / "bin" / "python")


def _main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = options.add_mutually_exclusive_group()
    what.add_argument("--ways", action="store_true", help="try the ways only")
    what.add_argument("--pytest", nargs=argparse.REMAINDER, help="run the suite with these arguments")
    args = options.parse_args()
    commands = []
    if args.pytest is None:
        commands.append(["-m", "conformance.platforms.ways"])
    if not args.ways:
        chosen = args.pytest if args.pytest is not None else [f"tests/{folder}" for folder in _FOLDERS]
        commands.append(["-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen])
    variables = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        python = _simulated(Path(folder))
        codes = [
            subprocess.run([python, *command], env=variables, cwd=_ROOT, check=False).returncode for command in commands
        ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(_main())
