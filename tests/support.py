"""Small models, the sessions they are compared with, and looking at a process from outside."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from conformance.drawing.draft import Draft, stack
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Report, create_session, report_of
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.releases import LENT_FILES, has
from ort_qdq_plugin.model.skeleton import Skeleton, open_skeleton
from tests.lacking import lacking_in

__all__ = [
    "CPU", "FORMS", "IN_PLACE", "ROOT", "ROUTE", "ROUTE_IN_MEMORY", "SLOWER", "START", "Array", "Form", "added_provider",
    "descriptors", "environment", "external_tensor", "field", "floating", "huge", "linear", "made_report", "mapped",
    "missing", "mixed", "opened", "python", "quiet", "raised", "refuse", "refusing", "result", "same", "save", "saved_nodes",
    "settled_descriptors", "stack", "stock", "tensor_of", "unquantized", "varint", "with_entries", "with_initializer",
    "x_of",
]  # fmt: skip

_MOST_DESCRIPTORS = 1024

Array = NDArray[Any]
Form = Literal["bytes", "file", "external"]
FORMS: tuple[Form, ...] = ("bytes", "file", "external")
CPU = ["CPUExecutionProvider"]
ROOT = Path(__file__).resolve().parents[1]
IN_PLACE = pytest.mark.skipif(not has(LENT_FILES), reason="this ONNX Runtime copies what it is given in memory")
ROUTE = "borrowed" if has(LENT_FILES) else "by path"
"""Of models that can be handed over in any way."""
ROUTE_IN_MEMORY = "borrowed" if has(LENT_FILES) else "copied"
"""Of models that are in memory alone, or were packed for an entry of the cache that is gone."""
START = f"import sys; exec(open({str(ROOT / 'ort_qdq_plugin' / 'switch' / 'ort_qdq_plugin.pth')!r}).read())\n"
"""What every interpreter runs first where the package is installed."""
SLOWER = float(os.environ.get("SLOWER", "1"))
"""How many times as long things may take, where the processor is emulated."""


def linear(weight: Weight, seed: str = "linear") -> onnx.ModelProto:
    """y = x @ W, in the usual form for the weight's layout."""
    draft = Draft(seed)
    draft.input("x", ["m", weight.k], weight.scale)
    draft.output("y", ["m", weight.n], weight.scale)
    dequantized = draft.weight(weight)
    if weight.n_major:
        dequantized = draft.node("Transpose", [dequantized], "t", perm=[1, 0])
    draft.node("MatMul", ["x", dequantized], "y")
    return draft.model()


def mixed() -> bytes:
    """One product that is fused, and one weight whose dequantized values are needed."""
    draft = Draft("mixed")
    product = draft.node("MatMul", [draft.input("x", ["m", 128]), draft.weight(Weight())], "p")
    bias = draft.weight(Weight(k=1, n=64, block=-1, element="int8"), "b")
    draft.output(draft.node("Mul", [product, bias], "y"), ["m", 64])
    return bytes(draft.model().SerializeToString())


def unquantized() -> onnx.ModelProto:
    """A model without weights."""
    draft = Draft()
    draft.output(draft.node("Relu", [draft.input("x", ["m", 8])], "y"), ["m", 8])
    return draft.model()


def floating() -> onnx.ModelProto:
    """A product with a weight of floats."""
    draft = Draft("float")
    draft.output(draft.node("MatMul", [draft.input("x", ["m", 64]), draft.floats("w", [64, 64])], "y"), ["m", 64])
    return draft.model()


def huge(folder: Path) -> str:
    """The path of a model with a weight of 20 GB, in a file that is only said to be so large."""
    k, n, offset, model = 1 << 18, 160_000, 0, linear(Weight())
    for value, size in ((model.graph.input[0], k), (model.graph.output[0], n)):
        value.type.tensor_type.shape.dim[1].dim_value = size
    for tensor in model.graph.initializer:
        rows, element_bytes = {"w": (k, 0.5), "w_s": (k // 32, 4), "w_z": (k // 32, 0.5)}[tensor.name]
        tensor.dims[:] = [rows, n]
        nbytes = int(rows * n * element_bytes)
        external_tensor(model, tensor.name, location="huge.data", offset=str(offset), length=str(nbytes))
        offset += nbytes
    with (folder / "huge.data").open("wb") as file:
        file.truncate(offset)
    assert offset > 20 << 30
    return str(save(model, folder, "file"))


def save(model: onnx.ModelProto, folder: Path, form: Form, stem: str = "model") -> str | bytes:
    """The model as bytes, or the path of a file with its weights inside or in `<stem>.data`."""
    if form == "bytes":
        return bytes(model.SerializeToString())
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = folder / f"{stem}.onnx"
    if form == "external":
        onnx.save_model(copy, path, save_as_external_data=True, location=f"{stem}.data", size_threshold=0)
    else:
        onnx.save_model(copy, path)
    return str(path)


def saved_nodes(path: Path) -> dict[str, list[onnx.NodeProto]]:
    """The nodes of a saved model, by type."""
    nodes: dict[str, list[onnx.NodeProto]] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        nodes.setdefault(node.op_type, []).append(node)
    return nodes


def tensor_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """The initializer of that name."""
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def external_tensor(model: onnx.ModelProto, name: str, **entries: str) -> onnx.TensorProto:
    """The initializer of that name, with these external data entries in place of its own."""
    tensor = tensor_of(model, name)
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


BOTH_WAYS_TO_NO_NAME = pytest.mark.parametrize("o_tmpfile", [True, False] if hasattr(os, "O_TMPFILE") else [False])
"""Files without a name are made so, or have theirs taken away: tests that delete `os.O_TMPFILE` unless they get True."""


def quiet() -> ort.SessionOptions:
    """Options that keep ONNX Runtime's complaints off the terminal."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def with_entries(entries: Mapping[str, str]) -> ort.SessionOptions:
    """Quiet options with these configuration entries."""
    options = quiet()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def added_provider() -> ort.SessionOptions:
    """Options that a copy would lose something of: their models go by path."""
    options = quiet()
    options.add_provider("CPUExecutionProvider", {})
    return options


def with_initializer() -> ort.SessionOptions:
    """Options with an initializer that a model may have too."""
    options = quiet()
    options.add_external_initializers(["w"], [ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))])
    return options


def stock(model: str | bytes, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """ONNX Runtime's own session."""
    return ort.InferenceSession(model, options or quiet(), providers=CPU)


def made_report(session: ort.InferenceSession) -> Report:
    """The report of a session that this package made."""
    report = report_of(session)
    assert report is not None
    return report


def x_of(session: ort.InferenceSession, rows: int = 5) -> dict[str, Array]:
    """Random inputs; a symbolic dimension is `rows`."""
    rng, inputs = np.random.default_rng(rows), {}
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else rows for dim in value.shape]
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type]
        inputs[value.name] = rng.standard_normal(shape).astype(kind)
    return inputs


def result(session: ort.InferenceSession, rows: int = 5) -> Array:
    """The first output for `x_of`."""
    output: Array = session.run(None, x_of(session, rows))[0]
    return output


def same(path: Path, exported: Path) -> bool:
    """Whether stock ONNX Runtime makes of an exported model what our session makes of the model, to the last bit."""
    ours, theirs = create_session(path, providers=CPU), stock(str(exported))
    x = x_of(ours)
    return all(np.array_equal(a, b) for a, b in zip(ours.run(None, x), theirs.run(None, x), strict=True))


def opened(model: str | bytes, data_folder: str | None = None) -> Skeleton:
    """The skeleton of a model that is one."""
    skeleton = open_skeleton(model, data_folder)
    assert skeleton is not None
    return skeleton


def refusing(problem: str | None) -> AbstractContextManager[object]:
    """Checks that the block raises ModelError with these words; None: that it raises nothing."""
    return nullcontext() if problem is None else pytest.raises(ModelError, match=problem)


def environment(**variables: str) -> dict[str, str]:
    """This process's, in which this repository is seen, with none of this package's variables but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORT_QDQ")}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def python(
    code: str, *arguments: object, cwd: Path | None = None, timeout: float = 60, variables: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter with the `environment` of these variables; arguments are in sys.argv."""
    command, set_up = [sys.executable, "-c", code, *map(str, arguments)], environment(**variables)
    limit = timeout * SLOWER
    done = subprocess.run(command, env=set_up, cwd=cwd, capture_output=True, text=True, timeout=limit)
    if done.returncode and (reason := lacking_in(done.stderr)):
        pytest.skip(reason)
    return done


def mapped(folder: Path) -> list[str]:
    """This process's mappings of files in `folder`, deleted ones included."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {folder}/" in line]


def settled_descriptors() -> int:
    """Descriptors that this process has open, those left to the garbage collector by other tests closed before."""
    # What one collection lets go may have held what only the next one finds.
    for _ in range(3):
        gc.collect()
    return descriptors()


def descriptors() -> int:
    """How many descriptors this process has open."""
    if sys.platform == "linux":
        return len(os.listdir("/proc/self/fd"))
    return sum(map(_is_open, range(_MOST_DESCRIPTORS)))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def refuse(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, problem: int) -> None:
    """From now on, this function fails with this error of the system's."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(module, name, fail)


def missing(path: Path) -> str:
    """What the system says of a path at which there is nothing."""
    with pytest.raises(FileNotFoundError) as told:
        path.stat()
    return str(told.value.strerror)


def raised(call: Callable[[], object]) -> tuple[type[BaseException], str] | None:
    """Class and text of what a call raises."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None
