"""Programs that load models: from all kinds of sources, with all kinds of options, and those that must fail."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.support import CPU, save
from tests.surface.models import DENOTATION, MODELS, SHIFT, K, N, with_operator
from tests.surface.registry import CONSTRUCTOR, covers
from tests.surface.sides import Side
from tests.surface.telling import plain

__all__ = ["EXTENSIONS", "FOLDER_KEY", "PARALLEL_KEY", "entries_of"]

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
_ONE = ["K-major, external data"]
EXTENSIONS, _MORE_EXTENSIONS = "ai.onnx.contrib", "com.microsoft.extensions"

_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfd0000003810180a2ad9681"
    "0000000049454e44ae426082"
)


def entries_of(options: Any, *keys: str) -> list[Any]:
    """Config entries; None where there is none."""

    def entry(key: str) -> Any:
        try:
            return options.get_session_config_entry(key)
        except RuntimeError:
            return None

    return [entry(key) for key in keys]


# Sources


@covers(ways=["path", "activated", "by path"])
def loads_from_paths_of_all_kinds(side: Side) -> Any:
    class Custom:
        def __init__(self, path: Any) -> None:
            self.path = path

        def __fspath__(self) -> Any:
            return self.path

    class Text(str):
        __slots__ = ()

    path = Path(side.stored)
    os.mkdir("folder with spaces é")
    os.symlink(path, "link.onnx")
    os.symlink(path, "folder with spaces é/link.onnx")
    os.symlink("..", "folder with spaces é/back")
    sources: list[Any] = [
        path, Text(path), Custom(str(path)), Custom(os.fsencode(path)), "model.onnx", Path("model.onnx"), "./model.onnx",
        f"../{path.parent.name}/model.onnx", f"{path.parent}//./model.onnx", "link.onnx", "folder with spaces é/link.onnx",
        "folder with spaces é/back/model.onnx",
    ]  # fmt: skip
    return [side.attempt(side.result, model=source) for source in sources]


@covers(ways=["path", "activated", "by path"])
def runs_wherever_the_process_goes(side: Side) -> Any:
    session = side.create(model="model.onnx")
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    return [session.run(None, side.fed()), side.attempt(side.create, model="model.onnx")]


@covers(models=_ONE)
def refuses_what_is_no_model(side: Side) -> Any:
    path, data = side.folder / "model.onnx", (side.folder / "model.onnx").read_bytes()
    Path("broken.onnx").write_bytes(b"no model")
    Path("empty.onnx").write_bytes(b"")
    Path("half.onnx").write_bytes(data[: len(data) // 2])
    Path("no.ort").write_bytes(data)
    os.mkdir("folder")
    sources: list[Any] = [
        "no such.onnx", Path("no such.onnx"), "no/such/model.onnx", "folder", Path("folder"), ".", "", "\0", "a\0b",
        "model.onnx/", "broken.onnx", "empty.onnx", "half.onnx", "no.ort", b"", b"no model", b"\0", data[: len(data) // 2],
        data[:-1], data + b"x", None, 3, bytearray(data), memoryview(data), [str(path)], object, "\udcff.onnx",
        os.fsencode(path), "/dev/null", "x" * 300, "x/" * 3000,
    ]  # fmt: skip

    def attempts(**keywords: Any) -> list[Any]:
        return [side.attempt(side.make, source, side.options(), **keywords) for source in sources]

    return [attempts(providers=CPU), attempts(providers=CPU, enable_fallback=0), attempts()]


@covers(models=["K-major, external data", "MatMulNBits, external data"])
def refuses_a_model_without_its_data(side: Side) -> Any:
    data, content = Path("model.data"), Path("model.data").read_bytes()
    seen = []
    for kept in (len(content) - 1, 10, 0):
        data.write_bytes(content[:kept])
        seen.append(side.attempt(side.create))
    data.unlink()
    seen.append(side.attempt(side.create))
    data.mkdir()
    seen.append(side.attempt(side.create))
    data.rmdir()
    (side.folder.parent / "outside.data").write_bytes(content)
    os.symlink("../outside.data", data)
    seen.append(side.attempt(side.create))
    return seen


@covers()
def refuses_a_model_that_is_wrong(side: Side) -> Any:
    seen = []

    def wrong(name: str, change: Any) -> None:
        model = side.model.proto()
        change(model)
        seen.append([name, side.attempt(side.create, model=side.save(model, name.replace(" ", "-")))])

    def at_input(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = K + 1

    wrong("unknown operator", lambda model: setattr(model.graph.node[0], "op_type", "NoSuch"))
    wrong("unknown domain", lambda model: setattr(model.graph.node[0], "domain", "no.such"))
    wrong("missing input", lambda model: model.graph.node[-1].input.__setitem__(0, "no such"))
    wrong("missing output", lambda model: setattr(model.graph.output[0], "name", "no such"))
    wrong("newest opset", lambda model: setattr(model.opset_import[0], "version", 999))
    wrong("no opset", lambda model: model.ClearField("opset_import"))
    wrong("newest ir", lambda model: setattr(model, "ir_version", 999))
    wrong("no ir", lambda model: model.ClearField("ir_version"))
    wrong("other shape", at_input)
    wrong("no graph", lambda model: model.ClearField("graph"))
    wrong("no initializers", lambda model: model.graph.ClearField("initializer"))
    wrong("twice a node", lambda model: model.graph.node.append(model.graph.node[-1]))
    return seen


@covers("SessionOptions.optimized_model_filepath")
def saves_its_optimized_model(side: Side) -> Any:
    options = side.options()
    options.optimized_model_filepath = str(Path.cwd() / "saved.onnx")
    results = [side.result(options)]
    saved = ort.InferenceSession("saved.onnx", side.options(), CPU)
    meta = saved.get_modelmeta()
    # A graph's name, its opsets and its metadata are the model's; its nodes are not.
    told = [meta.producer_name, meta.graph_name, meta.domain, meta.version, meta.custom_metadata_map]
    return [*results, saved.run(None, side.fed()), *told, options.optimized_model_filepath]


@covers("SessionOptions.optimized_model_filepath", "SessionOptions.add_session_config_entry")
def saves_its_optimized_model_with_external_data(side: Side) -> Any:
    options = side.options()
    options.optimized_model_filepath = str(Path.cwd() / "saved.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "saved.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
    results = [side.result(options)]
    tensors = onnx.load("saved.onnx", load_external_data=False).graph.initializer
    places = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    Path("model.data").unlink(missing_ok=True)
    Path("model.onnx").unlink()
    return [*results, sorted(places), ort.InferenceSession("saved.onnx", side.options(), CPU).run(None, side.fed())]


# ORT format has no 4-bit tensors: what stock leaves unfused it cannot load again.
@covers(
    "SessionOptions.optimized_model_filepath", "SessionOptions.add_session_config_entry",
    models=[name for name in MODELS if name != "N-major, inline"],
)  # fmt: skip
def saves_and_loads_ort_format(side: Side) -> Any:
    options, reading = side.options(), side.options()
    options.optimized_model_filepath = str(Path.cwd() / "saved.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    reading.add_session_config_entry("session.load_model_format", "ORT")
    results = [side.result(options)]
    results.append(side.result(model="saved.ort"))
    results.append(side.result(reading, model=Path("saved.ort").read_bytes()))
    return [*results, side.attempt(side.result, reading)]


@covers("SessionOptions.optimized_model_filepath")
def cannot_save_its_optimized_model(side: Side) -> Any:
    options = side.options()
    options.optimized_model_filepath = str(Path.cwd() / "no" / "such" / "saved.onnx")
    return side.attempt(side.result, options)


# The options of a session


_SETTINGS: dict[str, tuple[Any, ...]] = {
    "enable_cpu_mem_arena": (False,),
    "enable_mem_pattern": (False,),
    "enable_mem_reuse": (False,),
    "execution_mode": tuple(ort.ExecutionMode.__members__.values()),
    "execution_order": tuple(ort.ExecutionOrder.__members__.values()),
    "inter_op_num_threads": (1, 2),
    "intra_op_num_threads": (1, 2, -1),
    "log_severity_level": (4,),
    "log_verbosity_level": (1,),
    "logid": ("mine",),
    "use_deterministic_compute": (True,),
    "use_per_session_threads": (False,),
}


@covers(*(f"SessionOptions.{name}" for name in _SETTINGS), "get_session_options")
def takes_every_setting(side: Side) -> Any:
    seen = []
    for name, values in _SETTINGS.items():
        for value in values:
            options = side.options()
            setattr(options, name, value)

            def told(options: Any = options) -> Any:
                session = side.create(options)
                return [plain(session.get_session_options()), session.run(None, side.fed())]

            seen.append([name, side.attempt(told), plain(options)])
    return seen


@covers("SessionOptions.graph_optimization_level")
def takes_every_optimization_level(side: Side) -> Any:
    seen = []
    for level in ort.GraphOptimizationLevel.__members__:
        options = side.options()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session = side.create(options)
        seen.append([level, session.run(None, side.fed()), plain(session.get_session_options())])
    return seen


@covers("get_session_options", "SessionOptions.add_session_config_entry", "SessionOptions.get_session_config_entry")
def takes_config_entries(side: Side) -> Any:
    options = side.options()
    given = {"session.intra_op.allow_spinning": "0", "no.such.key": "value", "session.disable_prepacking": "1"}
    for key, value in given.items():
        options.add_session_config_entry(key, value)
    session = side.create(options)
    theirs = session.get_session_options()
    return [
        entries_of(theirs, *given, "not.set"),
        entries_of(options, *given, "not.set"),
        side.attempt(options.get_session_config_entry, "not.set"),
        side.attempt(theirs.get_session_config_entry, "not.set"),
        theirs is options,
        theirs is session.get_session_options(),
        session.run(None, side.fed()),
    ]


@covers("SessionOptions.add_session_config_entry")
def takes_config_entries_about_quantization(side: Side) -> Any:
    entries = [
        ("session.disable_quant_qdq", "1"), ("session.disable_quant_qdq", "0"), ("session.enable_quant_qdq_cleanup", "1"),
        ("session.qdq_matmulnbits_accuracy_level", "0"), ("session.qdq_matmulnbits_accuracy_level", "1"),
        ("session.qdq_matmulnbits_accuracy_level", "4"), ("session.qdq_matmulnbits_block_size", "64"),
        ("session.qdq_matmulnbits_accuracy_level", "9"), ("session.qdq_matmulnbits_accuracy_level", "x"),
        ("session.qdq_matmulnbits_accuracy_level", ""), ("session.qdq_matmulnbits_block_size", "48"),
        ("session.enable_dq_matmulnbits_fusion", "1"), ("session.qdqisint8allowed", "0"),
        ("session.prepack.enable_parallel", "0"), ("session.prepack.enable_parallel", "x"),
        ("session.disable_prepacking", "1"), ("session.use_device_allocator_for_initializers", "1"),
        ("session.strict_shape_type_inference", "1"), ("session.force_spinning_stop", "1"),
        ("session.load_model_format", "ONNX"), ("session.load_model_format", "x"), ("mlas.disable_kleidiai", "1"),
        ("session.use_ort_model_bytes_directly", "1"), ("optimization.enable_gelu_approximation", "1"),
        ("session.disable_specified_optimizers", "QDQSelectorActionTransformer"),
    ]  # fmt: skip

    def loaded(key: str, value: str) -> Any:
        options = side.options()
        options.add_session_config_entry(key, value)
        session = side.create(options)
        return [session.run(None, side.fed()), entries_of(options, key), entries_of(session.get_session_options(), key)]

    return [[entry, side.attempt(loaded, *entry)] for entry in entries]


@covers()
def refuses_what_are_no_options(side: Side) -> Any:
    wrong: list[Any] = [3, "options", {"key": "value"}, object(), ort.RunOptions()]
    return [side.attempt(side.make, side.stored, given, CPU) for given in wrong]


@covers(models=_ONE, ways=["path", "activated"])
def refuses_what_is_false_but_no_options(side: Side) -> Any:
    wrong: list[Any] = [0, "", {}, False]
    return [side.attempt(side.make, side.stored, given, CPU) for given in wrong]


@covers(ways=["path", "activated"])
def needs_no_options(side: Side) -> Any:
    sessions = [side.make(side.stored, providers=CPU), side.make(side.stored), side.make(side.stored, None, CPU)]
    return [[session.run(None, side.fed()), plain(session.get_session_options())] for session in sessions]


@covers()
def leaves_the_options_for_other_sessions(side: Side) -> Any:
    options = side.options()
    before = plain(options)

    def shape(make: Any, model: Any) -> Any:
        return make(model, options).get_inputs()[0].shape

    models = [side.stored, *(side.save(side.model.proto(f"other {n}"), f"other-{n}") for n in range(2))]
    results = []
    for turn, model in enumerate([*models, *models[::-1]]):
        make = side.make if turn % 2 else side.stock
        results.append(make(model, options, CPU if side.way != "by path" else None).run(None, side.fed()))
    Path("late.onnx").write_bytes(Path("model.onnx").read_bytes().replace(b"model.data", b"nosuch.dat"))
    late = Path("late.onnx").read_bytes() if side.way == "bytes" else "late.onnx"
    refused = [side.attempt(shape, make, late) for make in (side.stock, side.make)]
    return [results, before == plain(options), plain(options), refused]


@covers("get_session_options")
def its_own_options_serve_other_sessions(side: Side) -> Any:
    session = side.create()
    options = session.get_session_options()
    other = side.save(side.model.proto("other"), "other")
    results = [side.result(options, model=model) for model in (other, side.stored, other)]
    results.append(side.stock(other, options).run(None, side.fed()))
    del session
    results.append(side.result(options, model=other))
    results.append(side.stock(other, options).run(None, side.fed()))
    return results


@covers("InferenceSession().disabled_optimizers")
def leaves_out_disabled_optimizers(side: Side) -> Any:
    given: list[Any] = [
        None, [], ["EliminateIdentity"], ("EliminateIdentity",), {"EliminateIdentity", "ConstantFolding"}, ["no such"],
        ["QDQSelectorActionTransformer"], ["QDQSelectorActionTransformer", "MatMulNBitsFusion"], "EliminateIdentity", 3,
        [3], [None],
    ]  # fmt: skip
    seen = []
    for disabled in given:
        options = side.options()
        options.optimized_model_filepath = str(Path.cwd() / "saved.onnx")

        def loaded(options: Any = options, disabled: Any = disabled) -> Any:
            results = side.result(options, disabled_optimizers=disabled)
            nodes = onnx.load("saved.onnx", load_external_data=False).graph.node
            return [results, any(node.op_type == "Identity" for node in nodes)]

        seen.append(side.attempt(loaded))
    return seen


@covers("InferenceSession().read_config_from_model")
def takes_its_options_from_the_model(side: Side) -> Any:
    seen = []
    configs: list[Any] = [
        {"session_options": {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "execution_mode": 0}},
        {"session_options": {"graph_optimization_level": 0}},
        {"session_options": {"no such": 1}},
        "no JSON {",
    ]
    for number, config in enumerate(configs):
        model = side.model.proto()
        text = config if isinstance(config, str) else json.dumps(config)
        model.metadata_props.add(key="ort_config", value=text)
        stored = side.save(model, f"config-{number}")
        for keywords, wanted in ({"read_config_from_model": 1}, "0"), ({"read_config_from_model": "0"}, "1"), ({}, "1"):

            def loaded(stored: Any = stored, keywords: Any = keywords) -> Any:
                session = side.create(model=stored, **keywords)
                return [session.run(None, side.fed()), plain(session.get_session_options())]

            # ONNX Runtime looks at the variable itself, whatever the argument says.
            with mock.patch.dict(os.environ, {"ORT_LOAD_CONFIG_FROM_MODEL": wanted}):
                seen.append(side.attempt(loaded))
    return [*seen, side.attempt(side.create, read_config_from_model="x")]


@covers(
    "SessionOptions.add_free_dimension_override_by_name", "SessionOptions.add_free_dimension_override_by_denotation",
)  # fmt: skip
def fixes_free_dimensions(side: Side) -> Any:
    seen = []
    calls = [
        ("add_free_dimension_override_by_name", "m"),
        ("add_free_dimension_override_by_denotation", DENOTATION),
        ("add_free_dimension_override_by_name", "no such"),
    ]
    for call, name in calls:
        options = side.options()
        getattr(options, call)(name, 3)
        session = side.create(options)
        seen.append([[value.shape for value in (*session.get_inputs(), *session.get_outputs())]])
        seen += [session.run(None, side.fed()), side.attempt(session.run, None, side.fed(4))]
    return seen


# Initializers, libraries and providers in the options


@covers("SessionOptions.add_initializer")
def takes_a_value_for_an_initializer(side: Side) -> Any:
    seen = []
    values = {SHIFT: np.full(N, 3, np.float32), "no such": np.zeros(3, np.float32)}
    if side.model.tolerance == 0:
        # Of the others' operands see DIFFERENCES. OrtValues of 4-bit weights cannot be made from NumPy arrays.
        drawn = {tensor.name: tensor for tensor in side.model.proto("other").graph.initializer}
        operands = [drawn[name] for name in ("w", "w_s") if name in drawn]
        values |= {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in operands if tensor.data_type != TensorProto.UINT4
        }
    for name, value in values.items():
        options, held = side.options(), ort.OrtValue.ortvalue_from_numpy(value)
        options.add_initializer(name, held)
        seen.append(side.attempt(side.result, options))
        seen.append(side.attempt(options.add_initializer, name, held))
    return seen


@covers("SessionOptions.add_external_initializers")
def takes_values_for_external_initializers(side: Side) -> Any:
    seen = []
    scales = {tensor.name: tensor for tensor in side.model.proto("other").graph.initializer}
    names = [name for name in ("w_s", SHIFT) if name in scales]
    for given in (*([name] for name in names), names, ["no such"]):
        options = side.options()
        arrays = [onnx.numpy_helper.to_array(scales.get(name, scales[SHIFT])) for name in given]
        options.add_external_initializers(given, [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays])
        seen.append(side.attempt(side.result, options))
    return seen


@covers("SessionOptions.add_external_initializers_from_files_in_memory")
def takes_files_in_memory(side: Side) -> Any:
    seen, other = [], side.folder / "elsewhere"
    other.mkdir()
    content = b"nothing"
    if side.model.form == "external":
        save(side.model.proto("other"), other, "external", "other")
        content = (other / "other.data").read_bytes()
    for name in ("model.data", "no such"):
        options = side.options()
        options.add_external_initializers_from_files_in_memory([name], [content], [len(content)])
        seen.append(side.attempt(side.result, options))
    return seen


@covers("SessionOptions.register_custom_ops_library")
def takes_a_library_of_operators(side: Side) -> Any:
    library = pytest.importorskip("onnxruntime_extensions").get_library_path()
    options, given = side.options(), {"given": np.array(["abc", "é"])}
    options.register_custom_ops_library(library)
    texts = side.save(with_operator(side.model.proto(), "StringUpper", EXTENSIONS, TensorProto.STRING), "texts")
    images = side.save(
        with_operator(side.model.proto(), "DecodeImage", _MORE_EXTENSIONS, TensorProto.UINT8, rank=3), "images"
    )
    image = {"given": np.frombuffer(_PNG, np.uint8)}
    first, second = side.create(options, model=texts), side.create(options, model=images)
    return [
        first.run(None, {**side.fed(), **given}),
        second.run(None, {**side.fed(), **image}),
        side.result(options),
        side.stock(images, options).run(None, {**side.fed(), **image}),
        side.attempt(side.create, model=images),
        side.attempt(options.register_custom_ops_library, "no such.so"),
        entries_of(options, "session.use_external_initializer_file_buffers_directly"),
    ]


@covers(
    "SessionOptions.add_provider", "SessionOptions.add_provider_for_devices", "SessionOptions.has_providers",
    "SessionOptions.set_provider_selection_policy", "SessionOptions.set_provider_selection_policy_delegate",
)  # fmt: skip
def takes_providers_in_its_options(side: Side) -> Any:
    policy = ort.OrtExecutionProviderDevicePolicy
    adding: list[Any] = [
        lambda options: options.add_provider("CPUExecutionProvider", {}),
        lambda options: options.add_provider("NoSuchExecutionProvider", {}),
        lambda options: options.add_provider_for_devices(ort.get_ep_devices(), {}),
        lambda options: options.set_provider_selection_policy(policy.PREFER_CPU),
        lambda options: options.set_provider_selection_policy(policy.MAX_PERFORMANCE),
        lambda options: options.set_provider_selection_policy_delegate(lambda devices, *_: devices[:1]),
        lambda options: options.set_provider_selection_policy_delegate(lambda *_: []),
    ]
    seen = []
    for add in adding:
        for providers in (None, CPU):
            options = side.options()

            def loaded(add: Any = add, options: Any = options, providers: Any = providers) -> Any:
                add(options)
                session = side.make(side.stored, options, providers)
                return [session.get_providers(), session.run(None, side.fed())]

            seen.append([side.attempt(loaded), options.has_providers(), side.attempt(loaded)])
    return seen


@covers("SessionOptions.set_load_cancellation_flag")
def cancels_loading(side: Side) -> Any:
    options = side.options()
    options.set_load_cancellation_flag(True)
    seen = [side.attempt(side.create, options), side.attempt(side.create, options, enable_fallback=0)]
    options.set_load_cancellation_flag(False)
    return [*seen, side.result(options)]


@covers("SessionOptions.set_ep_context_data_read_func", "SessionOptions.clear_ep_context_data_read_func")
def takes_a_reader_of_provider_contexts(side: Side) -> Any:
    options = side.options()
    options.set_ep_context_data_read_func(lambda *_: None, 1 << 20)
    seen = [side.result(options)]
    options.clear_ep_context_data_read_func()
    return [*seen, side.result(options)]


@covers(*(f"{CONSTRUCTOR}.{name}" for name in ("path_or_bytes", "sess_options", "providers", "provider_options")))
def takes_its_arguments_by_name(side: Side) -> Any:
    given = {"path_or_bytes": side.stored, "sess_options": side.options(), "providers": CPU, "provider_options": [{}]}
    session = side.make(**given)
    unknown = side.make(**given, no_such_argument=3)
    return [session.run(None, side.fed()), unknown.run(None, side.fed()), side.attempt(side.make)[1]]
