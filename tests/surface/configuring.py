"""Programs that load models with all kinds of options: settings, config entries, initializers, libraries, providers."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.support import CPU, save
from tests.surface.models import DENOTATION, EXTENSIONS, K_MAJOR, SHIFT, N, with_operator
from tests.surface.probes import probe
from tests.surface.sides import Side, plain

_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfd0000003810180a2ad9681"
    "0000000049454e44ae426082"
)
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "enable_cpu_mem_arena": (False,),
    "enable_mem_pattern": (False,),
    "enable_mem_reuse": (False,),
    "execution_mode": tuple(ort.ExecutionMode.__members__.values()),
    "execution_order": tuple(ort.ExecutionOrder.__members__.values()),
    "graph_optimization_level": tuple(ort.GraphOptimizationLevel.__members__.values()),
    "inter_op_num_threads": (1, 2),
    "intra_op_num_threads": (1, 2, -1),
    "log_severity_level": (4,),
    "log_verbosity_level": (1,),
    "logid": ("mine",),
    "use_deterministic_compute": (True,),
    "use_per_session_threads": (False,),
}


@probe(SessionOptions=" ".join(_SETTINGS))
def takes_every_setting(side: Side) -> Iterator[Any]:
    for name, values in _SETTINGS.items():
        for value in values:
            options = side.options(**{name: value})
            yield name, side.attempt(side.facts, options), plain(options)


@probe("get_session_options", SessionOptions="add_session_config_entry get_session_config_entry")
def takes_config_entries(side: Side) -> Iterator[Any]:
    options = side.options()
    given = {"session.intra_op.allow_spinning": "0", "no.such.key": "value", "session.disable_prepacking": "1"}
    for key, value in given.items():
        options.add_session_config_entry(key, value)
    session = side.create(options)
    theirs = session.get_session_options()
    for asked in (theirs, options):
        yield side.attempts(asked.get_session_config_entry, [(key,) for key in (*given, "not.set")])
    yield theirs is options, theirs is session.get_session_options(), session.run(None, side.fed())


@probe(SessionOptions="add_session_config_entry")
def takes_config_entries_about_quantization(side: Side) -> Iterator[Any]:
    given: dict[str, list[str]] = {
        "session.disable_quant_qdq": ["1", "0"], "session.enable_quant_qdq_cleanup": ["1"],
        "session.qdq_matmulnbits_accuracy_level": ["0", "1", "4", "9", "x", ""],
        "session.qdq_matmulnbits_block_size": ["64", "48"], "session.enable_dq_matmulnbits_fusion": ["1"],
        "session.qdqisint8allowed": ["0"], "session.prepack.enable_parallel": ["0", "x"],
        "session.disable_prepacking": ["1"], "session.use_device_allocator_for_initializers": ["1"],
        "session.strict_shape_type_inference": ["1"], "session.force_spinning_stop": ["1"],
        "session.load_model_format": ["ONNX", "x"], "mlas.disable_kleidiai": ["1"],
        "session.use_ort_model_bytes_directly": ["1"], "optimization.enable_gelu_approximation": ["1"],
        "session.disable_specified_optimizers": ["QDQSelectorActionTransformer"],
    }  # fmt: skip

    def loaded(key: str, value: str) -> Any:
        options = side.options()
        options.add_session_config_entry(key, value)
        session = side.create(options)
        asked = (options, session.get_session_options())
        return [session.run(None, side.fed()), *(side.attempt(of.get_session_config_entry, key) for of in asked)]

    for key, values in given.items():
        yield key, side.attempts(loaded, [(key, value) for value in values])


@probe()
def refuses_what_are_no_options(side: Side) -> Any:
    wrong: list[Any] = [3, "options", {"key": "value"}, object(), ort.RunOptions()]
    return side.attempts(side.make, [(side.source(), given, CPU) for given in wrong])


@probe(models=[K_MAJOR], ways=["path", "activated"])
def refuses_what_is_false_but_no_options(side: Side) -> Any:
    wrong: list[Any] = [0, "", {}, False]
    return side.attempts(side.make, [(side.source(), given, CPU) for given in wrong])


@probe(ways=["path", "activated"])
def needs_no_options(side: Side) -> Any:
    sessions = [side.make(side.source(), providers=CPU), side.make(side.source()), side.make(side.source(), None, CPU)]
    return [[session.run(None, side.fed()), plain(session.get_session_options())] for session in sessions]


@probe()
def leaves_the_options_for_other_sessions(side: Side) -> Iterator[Any]:
    options = side.options()
    before = plain(options)
    models = [side.source(), *(side.save(side.model.proto(f"other {n}"), f"other-{n}") for n in range(2))]
    for turn, model in enumerate([*models, *models[::-1]]):
        make = side.make if turn % 2 else side.stock
        yield make(model, options, CPU if side.way != "by path" else None).run(None, side.fed())
    yield before == plain(options), plain(options)
    Path("late.onnx").write_bytes(Path("model.onnx").read_bytes().replace(b"model.data", b"nosuch.dat"))
    late = Path("late.onnx").read_bytes() if side.way == "bytes" else "late.onnx"
    yield [side.attempt(lambda make=make: make(late, options).get_inputs()[0].shape) for make in (side.stock, side.make)]


@probe("get_session_options")
def its_own_options_serve_other_sessions(side: Side) -> Iterator[Any]:
    session = side.create()
    options = session.get_session_options()
    other = side.save(side.model.proto("other"), "other")
    yield [side.result(options, model=model) for model in (other, side.source(), other)]
    yield side.stock(other, options).run(None, side.fed())
    del session
    yield side.result(options, model=other), side.stock(other, options).run(None, side.fed())


@probe(constructor="disabled_optimizers")
def leaves_out_disabled_optimizers(side: Side) -> Iterator[Any]:
    given: list[Any] = [
        None, [], ["EliminateIdentity"], ("EliminateIdentity",), {"EliminateIdentity", "ConstantFolding"}, ["no such"],
        ["QDQSelectorActionTransformer"], ["QDQSelectorActionTransformer", "MatMulNBitsFusion"], "EliminateIdentity", 3,
        [3], [None],
    ]  # fmt: skip

    def loaded(disabled: Any) -> Any:
        options = side.options(optimized_model_filepath=str(side.folder / "saved.onnx"))
        results = side.result(options, disabled_optimizers=disabled)
        nodes = onnx.load("saved.onnx", load_external_data=False).graph.node
        return [results, any(node.op_type == "Identity" for node in nodes)]

    yield side.attempts(loaded, [(disabled,) for disabled in given])


@probe(constructor="read_config_from_model")
def takes_its_options_from_the_model(side: Side) -> Iterator[Any]:
    configs = [
        json.dumps({"session_options": {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "execution_mode": 0}}),
        json.dumps({"session_options": {"graph_optimization_level": 0}}),
        json.dumps({"session_options": {"no such": 1}}),
        "no JSON {",
    ]
    asking: list[tuple[dict[str, Any], str]] = [({"read_config_from_model": 1}, "0"), ({"read_config_from_model": "0"}, "1")]
    for number, config in enumerate(configs):
        model = side.model.proto()
        model.metadata_props.add(key="ort_config", value=config)
        stored = side.save(model, f"config-{number}")
        for keywords, wanted in (*asking, ({}, "1")):
            # ONNX Runtime looks at the variable itself, whatever the argument says.
            with mock.patch.dict(os.environ, {"ORT_LOAD_CONFIG_FROM_MODEL": wanted}):
                yield side.attempt(side.facts, model=stored, **keywords)
    yield side.attempt(side.create, read_config_from_model="x")


# Initializers, libraries and providers in the options


def _others(side: Side) -> dict[str, onnx.TensorProto]:
    """The initializers of another model of the same shapes."""
    return {tensor.name: tensor for tensor in side.model.proto("other").graph.initializer}


@probe(SessionOptions="add_initializer")
def takes_a_value_for_an_initializer(side: Side) -> Iterator[Any]:
    values = {SHIFT: np.full(N, 3, np.float32), "no such": np.zeros(3, np.float32)}
    for name, tensor in _others(side).items():
        # Of the others' operands see DIFFERENCES. OrtValues of 4-bit weights cannot be made from NumPy arrays.
        if side.model.tolerance == 0 and name in ("w", "w_s") and tensor.data_type != TensorProto.UINT4:
            values[name] = onnx.numpy_helper.to_array(tensor)
    for name, value in values.items():
        options, held = side.options(), ort.OrtValue.ortvalue_from_numpy(value)
        options.add_initializer(name, held)
        yield side.attempt(side.result, options), side.attempt(options.add_initializer, name, held)


@probe(SessionOptions="add_external_initializers")
def takes_values_for_external_initializers(side: Side) -> Iterator[Any]:
    scales = _others(side)
    names = [name for name in ("w_s", SHIFT) if name in scales]
    for given in (*([name] for name in names), names, ["no such"]):
        options = side.options()
        arrays = [onnx.numpy_helper.to_array(scales.get(name, scales[SHIFT])) for name in given]
        options.add_external_initializers(given, [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays])
        yield side.attempt(side.result, options)


@probe(SessionOptions="add_external_initializers_from_files_in_memory")
def takes_files_in_memory(side: Side) -> Iterator[Any]:
    content, other = b"nothing", side.folder / "elsewhere"
    other.mkdir()
    if side.model.form == "external":
        save(side.model.proto("other"), other, "external", "other")
        content = (other / "other.data").read_bytes()
    for name in ("model.data", "no such"):
        options = side.options()
        options.add_external_initializers_from_files_in_memory([name], [content], [len(content)])
        yield side.attempt(side.result, options)


@probe(SessionOptions="register_custom_ops_library")
def takes_a_library_of_operators(side: Side) -> Iterator[Any]:
    options, model = side.options(), side.model.proto
    options.register_custom_ops_library(pytest.importorskip("onnxruntime_extensions").get_library_path())
    texts = side.save(with_operator(model(), "StringUpper", EXTENSIONS, TensorProto.STRING), "texts")
    images = side.save(
        with_operator(model(), "DecodeImage", "com.microsoft.extensions", TensorProto.UINT8, rank=3), "images"
    )
    text, image = ({**side.fed(), "given": given} for given in (np.array(["abc", "é"]), np.frombuffer(_PNG, np.uint8)))
    first, second = side.create(options, model=texts), side.create(options, model=images)
    yield first.run(None, text), second.run(None, image)
    yield side.result(options), side.stock(images, options).run(None, image)
    yield side.attempt(side.create, model=images), side.attempt(options.register_custom_ops_library, "no such.so")
    yield side.attempt(options.get_session_config_entry, "session.use_external_initializer_file_buffers_directly")


_POLICY = ort.OrtExecutionProviderDevicePolicy
_CALLS: dict[str, list[tuple[Any, ...]]] = {
    "add_provider": [("CPUExecutionProvider", {}), ("NoSuchExecutionProvider", {})],
    "add_provider_for_devices": [(ort.get_ep_devices(), {})],
    "set_provider_selection_policy": [(_POLICY.PREFER_CPU,), (_POLICY.MAX_PERFORMANCE,)],
    "set_provider_selection_policy_delegate": [(lambda devices, *_: devices[:1],), (lambda *_: [],)],
    "set_load_cancellation_flag": [(True,), (False,)],
    "set_ep_context_data_read_func": [(lambda *_: None, 1 << 20)],
    "clear_ep_context_data_read_func": [()],
    "add_free_dimension_override_by_name": [("m", 3), ("no such", 3)],
    "add_free_dimension_override_by_denotation": [(DENOTATION, 3)],
}


@probe(SessionOptions=f"has_providers {' '.join(_CALLS)}")
def takes_every_call_of_its_options(side: Side) -> Iterator[Any]:
    def loaded(options: Any, providers: Any) -> Any:
        session = side.make(side.source(), options, providers)
        shapes = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
        results = [side.attempt(session.run, None, side.fed(rows)) for rows in (3, 4)]
        return [session.get_providers(), shapes, results]

    for call, lists in _CALLS.items():
        for arguments in lists:
            for providers in (None, CPU):
                options = side.options()
                for _ in range(2):
                    yield call, side.attempt(getattr(options, call), *arguments), options.has_providers()
                    yield side.attempt(loaded, options, providers)


@probe(SessionOptions="set_load_cancellation_flag set_ep_context_data_read_func clear_ep_context_data_read_func")
def takes_back_what_its_options_were_told(side: Side) -> Iterator[Any]:
    options = side.options()
    options.set_load_cancellation_flag(True)
    options.set_ep_context_data_read_func(lambda *_: None, 1 << 20)
    yield side.attempt(side.create, options), side.attempt(side.create, options, enable_fallback=0)
    options.set_load_cancellation_flag(False)
    yield side.result(options)
    options.clear_ep_context_data_read_func()
    yield side.result(options)
