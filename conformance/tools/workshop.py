"""The tools at work: each in an environment of its own, with everything pinned, which is made when it is first needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conformance.tools.networks import write_networks

__all__ = ["ENVIRONMENTS", "Workshop"]

_HERE = Path(__file__).parent
_TORCH = "torch==2.13.0"
"""Installed first and alone where a tool needs it, so that nothing else settles on another version."""
_SHARED = {"torchao": "torch"}
"""Tool -> the one whose environment it uses."""
ENVIRONMENTS = tuple(sorted(path.stem for path in (_HERE / "requirements").glob("*.txt")))
_LAST = "simplifiers"
"""They read what the others wrote."""
_QUIET = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", "ORT_DISABLE_TELEMETRY": "1"}


class Workshop:
    """Has tools write their models into a folder.

    Args:
        folder: Where to.
        environments: Where the environments of the tools are, and stay; else there is one at a time.
    """

    def __init__(self, folder: Path, environments: Path | None = None) -> None:
        self.models = folder / "models"
        self._networks = folder / "networks"
        self._home = folder / "home"  # of tools that leave something there
        self._environments, self._keep = environments or folder / "environments", environments is not None
        for made in (self.models, self._networks, self._home / "intel"):
            made.mkdir(parents=True)
        (self._home / "intel" / "openvino_telemetry").write_text("0")  # nncf reports its use otherwise
        write_networks(self._networks)

    def written(self, tool: str) -> Path:
        """The folder of the models that a tool writes, SETTING NETWORK.onnx each. The tool is only run once."""
        made = self.models / tool
        if not made.exists():
            python = self._python(_SHARED.get(tool, tool))
            made.mkdir()
            networks = self.models if tool == _LAST else self._networks
            self._run(python, _HERE / "writers" / f"write_{tool}.py", networks, made)
        return made

    def _python(self, name: str) -> Path:
        """The interpreter of an environment."""
        environment, requirements = self._environments / name, _HERE / "requirements" / f"{name}.txt"
        python = environment / "bin" / "python"
        if not python.exists():
            if not self._keep:
                shutil.rmtree(self._environments, ignore_errors=True)
            self._run(sys.executable, "-m", "venv", environment)
            install = (python, "-m", "pip", "install", "--quiet")
            if _TORCH in requirements.read_text("utf-8").split():
                self._run(*install, _TORCH)
            self._run(*install, "-r", requirements)
        return python

    def _run(self, *command: str | Path) -> None:
        environment = {**os.environ, **_QUIET, "HOME": str(self._home)}
        for name in ("PYTHONPATH", "PIP_CONSTRAINT"):  # ours, not the tool's
            environment.pop(name, None)
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RuntimeError(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
