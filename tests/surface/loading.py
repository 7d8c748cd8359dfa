"""Programs that load models from all kinds of sources and save them, and those that must fail."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from tests.support import CPU, made_report
from tests.surface.models import K_MAJOR, MATMUL_NBITS, UNQUANTIZED, K
from tests.surface.probes import probe
from tests.surface.sides import Side


@probe(ways=["path", "activated", "by path"])
def loads_from_paths_of_all_kinds(side: Side) -> Any:
    class Custom:
        def __init__(self, path: Any) -> None:
            self.path = path

        def __fspath__(self) -> Any:
            return self.path

    class Text(str):
        __slots__ = ()

    def loaded(source: Any) -> Any:
        session = side.create(model=source)
        if side.ours and isinstance(os.fspath(source), str):  # a path in bytes is left to stock
            assert len(made_report(session).fused) == side.model.fused
        return session.run(None, side.fed())

    path = Path(side.source())
    os.mkdir("folder with spaces é")
    os.symlink(path, "link.onnx")
    os.symlink(path, "folder with spaces é/link.onnx")
    os.symlink("..", "folder with spaces é/back")
    sources: list[Any] = [
        path, Text(path), Custom(str(path)), Custom(os.fsencode(path)), "model.onnx", Path("model.onnx"), "./model.onnx",
        f"../{path.parent.name}/model.onnx", f"{path.parent}//./model.onnx", "link.onnx", "folder with spaces é/link.onnx",
        "folder with spaces é/back/model.onnx",
    ]  # fmt: skip
    return side.attempts(loaded, [(source,) for source in sources])


@probe(ways=["path", "activated", "by path"])
def runs_wherever_the_process_goes(side: Side) -> Any:
    session = side.create(model="model.onnx")
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    return [session.run(None, side.fed()), side.attempt(side.create, model="model.onnx")]


@probe(models=[K_MAJOR])
def refuses_what_is_no_model(side: Side) -> Any:
    path, data = side.folder / "model.onnx", (side.folder / "model.onnx").read_bytes()
    half = data[: len(data) // 2]
    for name, content in {"broken.onnx": b"no model", "empty.onnx": b"", "half.onnx": half, "no.ort": data}.items():
        Path(name).write_bytes(content)
    os.mkdir("folder")
    sources: list[Any] = [
        "no such.onnx", Path("no such.onnx"), "no/such/model.onnx", "folder", Path("folder"), ".", "", "\0", "a\0b",
        "model.onnx/", "broken.onnx", "empty.onnx", "half.onnx", "no.ort", b"", b"no model", b"\0", half, data[:-1],
        data + b"x", None, 3, bytearray(data), memoryview(data), [str(path)], object, "\udcff.onnx", os.fsencode(path),
        "/dev/null", "x" * 300, "x/" * 3000,
    ]  # fmt: skip
    keywords: list[dict[str, Any]] = [{"providers": CPU}, {"providers": CPU, "enable_fallback": 0}, {}]
    return [side.attempts(side.make, [(source, side.options()) for source in sources], **given) for given in keywords]


@probe(models=[K_MAJOR, MATMUL_NBITS])
def refuses_a_model_without_its_data(side: Side) -> Iterator[Any]:
    data, content = Path("model.data"), Path("model.data").read_bytes()
    for kept in (len(content) - 1, 10, 0):
        data.write_bytes(content[:kept])
        yield side.attempt(side.create)
    data.unlink()
    yield side.attempt(side.create)
    data.mkdir()
    yield side.attempt(side.create)
    data.rmdir()
    (side.folder.parent / "outside.data").write_bytes(content)
    os.symlink("../outside.data", data)
    yield side.attempt(side.create)


@probe()
def refuses_a_model_that_is_wrong(side: Side) -> Iterator[Any]:
    changes: dict[str, Callable[[onnx.ModelProto], object]] = {
        "unknown operator": lambda model: setattr(model.graph.node[0], "op_type", "NoSuch"),
        "unknown domain": lambda model: setattr(model.graph.node[0], "domain", "no.such"),
        "missing input": lambda model: model.graph.node[-1].input.__setitem__(0, "no such"),
        "missing output": lambda model: setattr(model.graph.output[0], "name", "no such"),
        "newest opset": lambda model: setattr(model.opset_import[0], "version", 999),
        "no opset": lambda model: model.ClearField("opset_import"),
        "newest ir": lambda model: setattr(model, "ir_version", 999),
        "no ir": lambda model: model.ClearField("ir_version"),
        "other shape": lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", K + 1),
        "no graph": lambda model: model.ClearField("graph"),
        "no initializers": lambda model: model.graph.ClearField("initializer"),
        "twice a node": lambda model: model.graph.node.append(model.graph.node[-1]),
    }
    for name, change in changes.items():
        model = side.model.proto()
        change(model)
        yield name, side.attempt(side.create, model=side.save(model, name.replace(" ", "-")))


@probe(SessionOptions="optimized_model_filepath")
def saves_its_optimized_model(side: Side) -> Iterator[Any]:
    options = side.options(optimized_model_filepath=str(side.folder / "saved.onnx"))
    yield side.result(options), options.optimized_model_filepath
    saved = ort.InferenceSession("saved.onnx", side.options(), CPU)
    meta = saved.get_modelmeta()
    # A graph's name, its opsets and its metadata are the model's; its nodes are not.
    yield meta.producer_name, meta.graph_name, meta.domain, meta.version, meta.custom_metadata_map
    yield saved.run(None, side.fed())
    nowhere = str(side.folder / "no" / "such" / "saved.onnx")
    yield side.attempt(side.result, side.options(optimized_model_filepath=nowhere))


@probe(SessionOptions="optimized_model_filepath add_session_config_entry")
def saves_its_optimized_model_with_external_data(side: Side) -> Iterator[Any]:
    options = side.options(optimized_model_filepath=str(side.folder / "saved.onnx"))
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "saved.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
    yield side.result(options)
    tensors = onnx.load("saved.onnx", load_external_data=False).graph.initializer
    yield sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"})
    Path("model.data").unlink(missing_ok=True)
    Path("model.onnx").unlink()
    yield ort.InferenceSession("saved.onnx", side.options(), CPU).run(None, side.fed())


# ORT format has no 4-bit tensors: what stock leaves unfused it cannot load again.
@probe(SessionOptions="optimized_model_filepath", models=[K_MAJOR, UNQUANTIZED, MATMUL_NBITS])
def saves_and_loads_ort_format(side: Side) -> Iterator[Any]:
    saving = side.options({"session.save_model_format": "ORT"}, optimized_model_filepath=str(side.folder / "saved.ort"))
    reading = side.options({"session.load_model_format": "ORT"})
    yield side.result(saving), side.result(model="saved.ort")
    yield side.result(reading, model=Path("saved.ort").read_bytes()), side.attempt(side.result, reading)


@probe(constructor="path_or_bytes sess_options providers provider_options")
def takes_its_arguments_by_name(side: Side) -> Iterator[Any]:
    given = {"path_or_bytes": side.source(), "sess_options": side.options(), "providers": CPU, "provider_options": [{}]}
    session, unknown = side.make(**given), side.make(**given, no_such_argument=3)
    yield session.run(None, side.fed()), unknown.run(None, side.fed()), side.attempt(side.make)[1]
