"""Every way to load a model, tried with this interpreter, on this system, with this ONNX Runtime.

    python -m conformance.platforms.ways [--only GLOB] [--markdown FILE]

Each way loads a decoder of two layers, K-major and N-major. It holds if everything is fused by the route that the way has
here, and the K-major model's results are those of stock ONNX Runtime, bit by bit. The exit code is 1 if one does not hold.
"""

import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from conformance.checks import parser, run
from conformance.sessions import CPU, digest_of, quiet_options
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.cli.demo_model import Decoder, write_model

_SMALL = Decoder(layers=2, width=256, gated=512, vocabulary=4096)


class _Models(NamedTuple):
    """The two models, and what stock ONNX Runtime computes with the K-major one."""

    k_major: Path
    n_major: Path
    digest: str


def _loaded(models: _Models, options: Options, session_options: Any = None, *, as_bytes: bool = False) -> list[str]:
    """Both models loaded: how, and by which use of the cache."""
    found = []
    for path in (models.k_major, models.n_major):
        model: str | bytes = str(path)
        if as_bytes:
            session_options = quiet_options()
            session_options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent)
            )
            model = path.read_bytes()
        providers = None if session_options is not None and session_options.has_providers() else CPU
        session = create_session(model, session_options or quiet_options(), providers, options=options)
        report = report_of(session)
        assert report is not None
        if report.unfused or not report.fused:
            raise AssertionError(f"not fused: {report.summary()}")
        if path == models.k_major and digest_of(session) != models.digest:
            raise AssertionError("other results than stock ONNX Runtime's")
        if not np.isfinite(session.run(None, {"x": np.ones((1, 2, _SMALL.width), np.float32)})[0]).all():
            raise AssertionError("results that are no numbers")
        found.append(f"{report.route}, {report.cache}" if report.cache else report.route)
    return found


def _path(models: _Models, folder: Path) -> list[str]:
    return _loaded(models, Options(strict=True))


def _file(models: _Models, folder: Path) -> list[str]:
    return _loaded(models, Options(strict=True, buffer="file", spill_dir=str(folder)))


def _bytes(models: _Models, folder: Path) -> list[str]:
    return _loaded(models, Options(strict=True), as_bytes=True)


def _by_path(models: _Models, folder: Path) -> list[str]:
    options = quiet_options()
    options.add_provider("CPUExecutionProvider", {})
    return _loaded(models, Options(strict=True), options)


def _cached(models: _Models, folder: Path) -> list[str]:
    options = Options(strict=True, cache_dir=str(folder / "cache"))
    return _loaded(models, options) + _loaded(models, options)


def _shared(models: _Models, folder: Path) -> list[str]:
    options = Options(strict=True, cache_dir=str(folder / "shared"), share_weights=True)
    return _loaded(models, options) + _loaded(models, options)


def _command_line(models: _Models, folder: Path) -> list[str]:
    done = []
    for name, *arguments in (
        ("inspect", str(models.n_major)),
        ("warm", "--dir", str(folder / "warmed"), str(models.n_major)),
        ("cache", "list", "--dir", str(folder / "warmed")),
        ("export", str(models.n_major), str(folder / "exported")),
        ("bench", "--runs", "1", str(models.k_major)),
    ):
        command = [sys.executable, "-m", "ort_qdq_plugin", name, *arguments]
        made = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if made.returncode:
            raise AssertionError(f"{name}: exit code {made.returncode}: {(made.stdout + made.stderr).strip()[-300:]}")
        done.append(name)
    return done


_WAYS: dict[str, Callable[[_Models, Path], list[str]]] = {
    "plain load": _path,
    "buffers in files": _file,
    "bytes": _bytes,
    "by path": _by_path,
    "cache": _cached,
    "shared weights": _shared,
    "command line": _command_line,
}


def _main() -> int:
    args = parser(__doc__).parse_args()
    # Files may still be mapped by sessions when the folder goes: some systems do not remove them then.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        k_major, n_major = write_model(folder / "k", True, _SMALL), write_model(folder / "n", False, _SMALL)
        stock = ort.InferenceSession(str(k_major), quiet_options(), providers=CPU)
        models = _Models(k_major, n_major, digest_of(stock))

        def tried(way: str) -> tuple[list[str], list[str]]:
            try:
                return [way, "holds", "; ".join(dict.fromkeys(_WAYS[way](models, folder)))], []
            except Exception as error:
                return [way, "**FAIL**", f"{type(error).__name__}: {error}"], [way]

        title = f"{platform.platform()}, Python {platform.python_version()}, ONNX Runtime {ort.__version__}"
        print(title)
        return run({way: way for way in _WAYS}, tried, ["way", "verdict", "how"], args, title)


if __name__ == "__main__":
    sys.exit(_main())
