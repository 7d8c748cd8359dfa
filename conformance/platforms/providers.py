"""Execution providers: which take fused nodes, and what these do there. Linux.

    python -m conformance.platforms.providers [--folder DIR] [--as-intel] [--only GLOB] [--markdown FILE]

Builds and plugins of ONNX Runtime are installed from PyPI into environments of their own, 2 GB in all, which stay if DIR is
given. Each way to get a provider loads models by stock ONNX Runtime and by this package, in turns, in fresh processes.

A row says what was fused, by which route ONNX Runtime got it, and who runs the fused nodes; then, for stock and for this
package: MB at the peak beyond what the process had before, milliseconds of a run with one row, and the difference to the
unoptimized model on the CPU, max|a-b|/max|a|, "identical" if both give the same bits. It holds if everything is fused where
the way says so, and this package's session works and is as right as stock's. The exit code is 1 if one does not hold.
"""

import argparse
import ctypes
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from conformance.checks import parser, run
from conformance.drawing.draft import stack
from conformance.sessions import quiet_options

__all__ = ["FUSED", "WAYS", "Bench", "assigned", "benched", "command", "in_environment", "take_for_intel"]

_ROOT = Path(__file__).resolve().parents[2]
_ORT = "onnxruntime==1.32.0"
_ENVIRONMENTS = {
    "onnxruntime": ((_ORT,),),
    "onnxruntime-gpu": (("onnxruntime-gpu==1.31.1",),),
    "onnxruntime-openvino": (("onnxruntime-openvino==1.24.1",),),
    # The second asks for an older ONNX Runtime.
    "plugins": ((_ORT, "onnxruntime-ep-openvino==1.8.1"), ("--no-deps", "onnxruntime-ggml==0.2.0")),
}
"""What each environment has, besides onnx and NumPy, as arguments of `pip install`."""
_COLUMNS = ("way", "model", "fused", "route", "fused nodes run on", "peak MB", "ms", "difference", "verdict")
_TURNS, _RUNS = 3, 15
_LIMIT = 2e-2  # of the difference: providers round activations to 8 bits, as accuracy level 4 does
_OPENVINO, _GGML = "OpenVINOExecutionProvider", "ggml"
_INTEL = 0x8086
FUSED = ("MatMulNBits", "GatherBlockQuantized", "QMoE")

_Session = tuple[ort.SessionOptions, list[str] | None]
"""Session options, and providers by name."""


def _options() -> ort.SessionOptions:
    options = quiet_options(0)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _by_default() -> _Session:
    return _options(), None


@functools.cache
def _register() -> None:
    openvino, ggml = import_module("onnxruntime_ep_openvino"), import_module("onnxruntime_ggml")
    ort.register_execution_provider_library(_OPENVINO, openvino.get_library_path())
    ort.register_execution_provider_library(_GGML, ggml.library_path())


def _registered() -> _Session:
    _register()
    return _options(), None


def _registered_and_named() -> _Session:
    _register()
    return _options(), [f"{_OPENVINO}.AUTO"]


def _selected() -> _Session:
    _register()
    options = _options()
    options.set_provider_selection_policy(ort.OrtExecutionProviderDevicePolicy.PREFER_CPU)
    return options, None


def _added(provider: str) -> _Session:
    _register()
    options = _options()
    options.add_provider_for_devices([device for device in ort.get_ep_devices() if device.ep_name == provider], {})
    return options, None


class _Way(NamedTuple):
    """How a session gets its providers."""

    environment: str
    make: Callable[[], _Session]
    fuses: bool = True
    models: tuple[str, ...] = ("decoder",)


_SPLIT = "decoder, a node on the CPU"
_ALL = ("decoder", _SPLIT, "2 bits", "8 bits")
WAYS = {
    "onnxruntime": _Way("onnxruntime", _by_default),
    "onnxruntime-gpu": _Way("onnxruntime-gpu", _by_default),
    "onnxruntime-openvino": _Way("onnxruntime-openvino", _by_default, False),
    "onnxruntime-openvino, OpenVINO by name": _Way("onnxruntime-openvino", lambda: (_options(), [_OPENVINO]), False),
    "plugins registered": _Way("plugins", _registered),
    "onnxruntime-ep-openvino, devices added": _Way("plugins", lambda: _added(_OPENVINO), models=_ALL),
    "onnxruntime-ep-openvino, selected by policy": _Way("plugins", _selected),
    "onnxruntime-ep-openvino, AUTO by name": _Way("plugins", _registered_and_named, models=_ALL[:2]),
    "onnxruntime-ggml, devices added": _Way("plugins", lambda: _added(_GGML)),
}
_CHECKS = {f"{way}: {model}": (way, model) for way in WAYS for model in WAYS[way].models}


def _child(way: str, model: str, reference: str, *, ours: bool, as_intel: bool) -> dict[str, Any]:
    """Load the model and run it, by stock or by this package: what that took, and what came of it."""
    if as_intel:
        take_for_intel()
    options, providers = WAYS[way].make()
    before = _size("VmRSS")
    fused, route, left = 0, "stock", ""
    if ours:
        from ort_qdq_plugin import create_session, report_of

        session = create_session(model, options, providers)
        report = report_of(session)
        if report is None:
            raise AssertionError("the session has no report")
        route, left = report.route, report.stock_message or ""
        fused = 0 if left else len(report.fused)
    else:
        session = ort.InferenceSession(model, options, providers)
    entry = session.get_inputs()[0]
    with np.load(reference) as stored:
        x, wanted = stored["x"], stored["y"].astype(np.float64)
    got = session.run(None, {entry.name: x})[0].astype(np.float64)
    one_row, taken = {entry.name: x[..., :1, :]}, []
    for _ in range(_RUNS):
        start = time.perf_counter()
        session.run(None, one_row)
        taken.append(time.perf_counter() - start)
    difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    on = Counter(provider for operator, provider in assigned(session) if operator in FUSED)
    return {
        "peak": _size("VmHWM") - before, "ms": 1e3 * median(taken), "difference": difference, "fused": fused,
        "route": route, "left": left, "on": ", ".join(f"{provider} ({count})" for provider, count in on.items()),
        "digest": hashlib.sha256(got.tobytes()).hexdigest(),
    }  # fmt: skip


def assigned(session: Any) -> list[tuple[str, str]]:
    """Operator and provider of each node that runs."""
    return [(node.op_type, one.ep_name) for one in session.get_provider_graph_assignment_info() for node in one.get_nodes()]


def _size(name: str) -> float:
    """Of this process, in MB, by its name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def take_for_intel() -> None:
    """Have ONNX Runtime take the processor for one of Intel's: OpenVINO's plugin offers no device on others.

    The maker is the second number of its OrtHardwareDevice, to which pybind11's object has a pointer behind its head.
    """
    for device in {device.device for device in ort.get_ep_devices()}:
        found = ctypes.c_void_p.from_address(id(device) + object.__basicsize__).value
        maker = ctypes.c_uint32.from_address((found or 0) + ctypes.sizeof(ctypes.c_int))
        if maker.value != device.vendor_id:
            raise RuntimeError("OrtHardwareDevice is not as it was in ONNX Runtime 1.32.0")
        maker.value = _INTEL


class Bench:
    """Environments, models and what unoptimized ONNX Runtime computes with these, in a folder."""

    def __init__(self, folder: Path, *, as_intel: bool) -> None:
        self._folder, self._as_intel = folder, as_intel
        self._models: dict[str, tuple[Path, Path]] = {}

    def row(self, check: tuple[str, str]) -> tuple[list[str], list[str]]:
        way, name = check
        model, reference = self._model(name)
        job = {"way": way, "model": str(model), "reference": str(reference), "as_intel": self._as_intel}
        python = self.python(WAYS[way].environment)
        turns = [[_told(python, {**job, "ours": ours}) for ours in (False, True)] for _ in range(_TURNS)]
        stock, ours = ([turn[side] for turn in turns] for side in range(2))
        problems = _problems(WAYS[way], stock[-1], ours[-1])
        pairs = [f"{_middle(stock, key):{form}} / {_middle(ours, key):{form}}" for key, form in _FIGURES.items()]
        last = ours[-1]
        pairs[-1] += ", identical" * (last.get("digest", 0) == stock[-1].get("digest"))
        cells = [way, name, str(last.get("fused", "")), str(last.get("route", "")), str(last.get("on", "")), *pairs]
        said = "; ".join([*problems, *filter(None, [stock[-1].get("error"), last.get("left")])])
        return [*cells, ("**FAIL**: " if problems else "holds") + (f": {said}" if said else "")], problems

    def python(self, name: str) -> Path:
        """The interpreter of an environment, which is made if it is not there."""
        environment = self._folder / "environments" / name
        python = environment / "bin" / "python"
        if not (environment / "ready").exists():
            _run(sys.executable, "-m", "venv", "--clear", environment)
            for arguments in (("onnx", "numpy"), *_ENVIRONMENTS[name]):
                _run(python, "-m", "pip", "install", "--quiet", *arguments)
            (environment / "ready").touch()
        return python

    def _model(self, name: str) -> tuple[Path, Path]:
        if name not in self._models:
            folder = self._folder / "models" / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir(parents=True)
            self._models[name] = _MODELS[name](folder), folder / "reference.npz"
            _write_reference(*self._models[name])
        return self._models[name]


_FIGURES = {"peak": ".0f", "ms": ".2f", "difference": ".1e"}


def _middle(told: list[dict[str, Any]], key: str) -> float:
    return median(float(one.get(key, "nan")) for one in told)


def _problems(way: _Way, stock: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    if "error" in ours:
        return [] if "error" in stock else [f"fails where stock does not: {ours['error']}"]
    problems = []
    if way.fuses and not ours["fused"]:
        problems.append("nothing is fused")
    if ours["difference"] > max(_LIMIT, 2 * stock.get("difference", 0)):
        problems.append(f"a difference of {ours['difference']:.1e}")
    return problems


def in_environment(python: Path, module: str, job: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Run a module of this checkout there, with a job as JSON."""
    command: list[str | Path] = [python, "-m", f"conformance.platforms.{module}", "--child", json.dumps(job)]
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "ORT_GGML_LOG": "error", "PYTHONWARNINGS": "ignore", "PYTHONPATH": ""}
    environment = {**os.environ, **quiet}
    return subprocess.run(command, check=False, cwd=_ROOT, env=environment, capture_output=True, text=True, errors="replace")


def _told(python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What a fresh process says of a load."""
    done = in_environment(python, "providers", job)
    if done.returncode < 0:
        return {"error": f"ended by signal {-done.returncode}"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1][:120]}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")


def _decoder(folder: Path, *, between: str = "") -> Path:
    """A decoder's products, and perhaps a node between its layers, of an operator that OpenVINO leaves to the CPU."""
    from ort_qdq_plugin.cli.demo_model import write_model

    path = write_model(folder / "decoder", True)
    if between:
        model = onnx.load(path, load_external_data=False)
        nodes = model.graph.node
        at = next(at for at, node in enumerate(nodes) if node.name == "layer1.qkv.out.node")
        nodes.insert(at, helper.make_node(between, nodes[at].input[:1], ["between"], domain="com.microsoft"))
        nodes[at + 1].input[0] = "between"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        path.write_bytes(model.SerializeToString())
    return path


def _stacked(folder: Path, bits: int) -> Path:
    """Products of which none saturates the Tanh behind it."""
    path, model = folder / "stack.onnx", stack(4, 1024, element=f"uint{bits}")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(4 / 2**bits), tensor.name))
    onnx.save_model(model, path)
    return path


_MODELS: dict[str, Callable[[Path], Path]] = {
    "decoder": _decoder,
    _SPLIT: lambda folder: _decoder(folder, between="FastGelu"),
    "2 bits": lambda folder: _stacked(folder, 2),
    "8 bits": lambda folder: _stacked(folder, 8),
}


def _write_reference(model: Path, reference: Path) -> None:
    options = quiet_options(0)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [1] * (len(entry.shape) - 2) + [8, entry.shape[-1]]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(reference, x=x, y=session.run(None, {entry.name: x})[0])


def command(description: str | None) -> argparse.Namespace:
    """The command line."""
    made = parser(description)
    made.add_argument("--folder", metavar="DIR", type=Path, help="keep the environments there")
    made.add_argument("--as-intel", action="store_true", help="have the processor taken for one of Intel's")
    made.add_argument("--child", help=argparse.SUPPRESS)
    return made.parse_args()


@contextmanager
def benched(args: argparse.Namespace) -> Iterator[Bench]:
    """A bench for the command line's arguments."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.folder:
            args.folder.mkdir(parents=True, exist_ok=True)
            (folder / "environments").symlink_to(args.folder.resolve())
        yield Bench(folder, as_intel=args.as_intel)


def _main() -> int:
    args = command(__doc__)
    if args.child:
        print(json.dumps(_child(**json.loads(args.child))))
        return 0
    with benched(args) as bench:
        return run(_CHECKS, bench.row, _COLUMNS, args, "# Execution providers")


if __name__ == "__main__":
    sys.exit(_main())
