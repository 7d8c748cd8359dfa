"""Containers that lack what a system usually has: what becomes there of each way to load a model.

    python -m conformance.platforms.containers [--only GLOB] [--markdown FILE]

Each row is a container of Linux's own (`unshare`, as root, or with user namespaces), and each of its ways a fresh process in
it. A row holds if stock ONNX Runtime loads the model there, and each way gives a session with the same results, bit by bit,
and one warning at most for each load. The exit code is 1 if one does not hold.
"""

import json
import os
import platform
import stat
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import onnx
import onnxruntime as ort

from conformance.checks import parser, run
from conformance.platforms.contained import CONTAINERS, WAYS, Container, Scene, Told
from conformance.sessions import CPU, digest_of, quiet_options
from ort_qdq_plugin.cli.demo_model import Decoder, write_model

__all__ = ["in_container", "scene_in", "why_not"]

_DECODER = Decoder(layers=2, width=512, gated=1024, vocabulary=4096)  # of which more is packed than goes into memory anyhow
_TIMEOUT = 120  # seconds; a load takes less than two
_COLUMNS = ("container", "how", *WAYS, "results")


def why_not(container: Container) -> str:
    """Why there can be no such container here; "" if there can."""
    if not sys.platform.startswith("linux"):
        return "containers are Linux's"
    if container.needs_root and os.geteuid():
        return "needs root"
    if container.needs_root and not all(map(_is_open_to_all, (sys.prefix, sys.base_prefix, __file__))):
        return "other users cannot reach the interpreter, or this checkout"
    try:
        made = subprocess.run([*_unshare(), "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "needs unshare"
    return made.stderr.strip() if made.returncode else ""


def _is_open_to_all(path: str) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(path).resolve().parents)


def _unshare() -> list[str]:
    return ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "--"]


def scene_in(folder: Path) -> Scene:
    """A model in a folder that all users may read and write to, and what stock ONNX Runtime computes with it."""
    for place in ("", "home", "models"):
        (folder / place).mkdir(exist_ok=True)
        (folder / place).chmod(0o1777)
    model, inline = write_model(folder / "models" / "decoder", True, _DECODER), folder / "models" / "inline.onnx"
    onnx.save(onnx.load(model), inline)
    stock = ort.InferenceSession(str(model), quiet_options(), providers=CPU)
    return Scene(str(model), str(inline), str(folder), digest_of(stock))


def in_container(container: Container, scene: Scene, *ways: str) -> list[Told]:
    """What becomes of loads by some of the `WAYS`, in a process in a container."""
    given = scene._replace(model=scene.inline) if container.inline else scene
    command = [*_unshare(), sys.executable, "-m", "conformance.platforms.contained", container.name, "", *given, *ways]
    kept = {name: value for name, value in os.environ.items() if name != "TMPDIR" and not name.startswith("ORT_QDQ")}
    own = {"HOME": os.path.join(scene.folder, "home"), "PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    variables: dict[str, str] = {**kept, **own, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = subprocess.run(
            command, env=variables, cwd=os.sep, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return [Told(ways[-1], error="hangs")]
    told = [Told(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not told:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        told.append(Told(ways[-1], error=f"exit code {done.returncode}: {last[0][:200]}"))
    return told


def _row(scene: Scene, container: Container) -> tuple[list[str], list[str]]:
    reason = why_not(container)
    if reason:
        return [container.name, container.how, *[""] * len(WAYS), f"skipped: {reason}"], []
    cells, problems = [], []
    for way in WAYS:
        told = in_container(container, scene, way)
        cells.append("; then ".join(dict.fromkeys(str(one).replace(scene.folder, "...") for one in told)))
        problems += [f"{way}: {problem}" for one in told if (problem := one.problem(scene.digest))]
    return [container.name, container.how, *cells, "**FAIL**" if problems else "identical"], problems


def _main() -> int:
    args = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        scene = scene_in(Path(name).resolve())
        title = f"{platform.platform()}, Python {platform.python_version()}, ONNX Runtime {ort.__version__}"
        print(title)
        containers = {container.name: container for container in CONTAINERS}
        return run(containers, partial(_row, scene), _COLUMNS, args, title)


if __name__ == "__main__":
    sys.exit(_main())
