"""Programs that ask a session what it is, change what can be changed of it, and treat it as a Python object."""

from __future__ import annotations

import copy
import gc
import inspect
import json
import pickle
import time
import weakref
from pathlib import Path
from typing import Any

import onnxruntime as ort

from tests.support import CPU
from tests.surface.registry import covers
from tests.surface.sides import Side

_UNKNOWN = "NoSuchExecutionProvider"
_SOME = ("K-major, external data", "nothing quantized")
_RECORDING_KEY = "session.record_ep_graph_assignment_info"


def plain(value: Any) -> Any:
    """What an object of ONNX Runtime's says of itself in attributes; enumerators by name."""
    if value is None or isinstance(value, (str, int, float, list, dict)):
        return value
    if hasattr(type(value), "__members__"):
        return str(value)
    told = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
    return {name: plain(entry) for name, entry in told.items() if not callable(entry)}


@covers(
    "get_inputs", "get_outputs", "get_overridable_initializers", "NodeArg.name", "NodeArg.type", "NodeArg.shape",
)  # fmt: skip
def tells_of_inputs_and_outputs(side: Side) -> Any:
    session = side.create()
    lists = [session.get_inputs(), session.get_outputs(), session.get_overridable_initializers()]
    texts = [str(value) for value in lists[0]]
    del session
    return [[[value.name, value.type, value.shape] for value in values] for values in lists] + texts


@covers(
    "get_modelmeta", "ModelMetadata.custom_metadata_map", "ModelMetadata.description", "ModelMetadata.domain",
    "ModelMetadata.graph_description", "ModelMetadata.graph_name", "ModelMetadata.producer_name", "ModelMetadata.version",
)  # fmt: skip
def tells_of_the_model(side: Side) -> Any:
    meta = side.create().get_modelmeta()
    told = [meta.custom_metadata_map, meta.description, meta.domain, meta.graph_description, meta.graph_name]
    bare = side.model.proto()
    for field in ("producer_name", "doc_string", "domain", "model_version", "metadata_props"):
        bare.ClearField(field)
    bare.graph.ClearField("doc_string")
    without = side.create(model=side.save(bare, "bare")).get_modelmeta()
    return [*told, meta.producer_name, meta.version, plain(meta), plain(without)]


@covers("get_input_memory_infos", "get_output_memory_infos", "get_input_epdevices")
def tells_where_values_are(side: Side) -> Any:
    session = side.create()
    infos = [session.get_input_memory_infos(), session.get_output_memory_infos()]
    devices = [[device.ep_name, device.ep_vendor, device.ep_metadata] for device in session.get_input_epdevices()]
    return [[[plain(info) for info in values] for values in infos], devices]


@covers("get_provider_graph_assignment_info")
def tells_which_provider_runs_what(side: Side) -> Any:
    options = side.options()
    options.add_session_config_entry(_RECORDING_KEY, "1")
    assigned = side.create(options).get_provider_graph_assignment_info()
    unasked = side.create()
    return [sorted({part.ep_name for part in assigned}), side.attempt(unasked.get_provider_graph_assignment_info)]


@covers("get_providers", "get_provider_options", models=_SOME)
def tells_its_providers(side: Side) -> Any:
    cpu, azure = "CPUExecutionProvider", "AzureExecutionProvider"
    given: list[tuple[Any, Any]] = [
        (None, None), ([], None), ((), None), ([cpu], None), ((cpu,), None), ([(cpu, {})], None), ([(cpu, {"a": 1})], None),
        ([cpu], [{}]), ([cpu], [{"a": "1"}]), ([azure, cpu], None), ([cpu, azure], [{}, {}]), ([cpu, cpu], None),
        ([_UNKNOWN, cpu], None), ([_UNKNOWN], None), ([cpu], []), ([cpu], [{}, {}]), ([(cpu, {})], [{}]), ([cpu], [None]),
        ([cpu], 3), ([3], None), (3, None), ([(cpu,)], None), ([[cpu, {}]], None), (cpu, None), ([(cpu, {}, {})], None),
        (None, [{}]), ({cpu}, None),
    ]  # fmt: skip

    def told(providers: Any, provider_options: Any, **keywords: Any) -> Any:
        session = side.make(side.stored, side.options(), providers=providers, provider_options=provider_options, **keywords)
        return [session.get_providers(), session.get_provider_options(), session.run(None, side.fed())]

    def attempts(**keywords: Any) -> list[Any]:
        return [side.attempt(told, *pair, **keywords) for pair in given]

    return [attempts(), attempts(enable_fallback=0)]


@covers("set_providers", "get_providers", "get_provider_options")
def takes_other_providers(side: Side) -> Any:
    session, cpu = side.create(), "CPUExecutionProvider"
    seen = []
    given: list[tuple[Any, ...]] = [
        (), (CPU,), (CPU,), (["AzureExecutionProvider", cpu],), ([(cpu, {})],), (CPU, [{}]), ([_UNKNOWN, cpu],), ([],),
    ]  # fmt: skip
    for arguments in given:
        seen.append(side.attempt(session.set_providers, *arguments))
        if session._sess is None:
            session.set_providers(CPU)
        told = [session.get_providers(), session.get_provider_options(), session.get_session_options().logid]
        seen.append([*told, session.run(None, side.fed()), [value.shape for value in session.get_outputs()]])
    return seen


@covers("set_providers")
def refuses_impossible_providers(side: Side) -> Any:
    seen = []
    for arguments in (([3],), (CPU, []), (3,), (CPU, [3])):
        session = side.create()
        seen.append(side.attempt(session.set_providers, *arguments))
        seen.append(session.get_providers())
        session.set_providers(CPU)
        seen.append(session.run(None, side.fed()))
    return seen


@covers("set_providers", "run_with_iobinding", "io_binding")
def keeps_old_bindings_apart(side: Side) -> Any:
    session = side.create()
    binding, inputs = session.io_binding(), session.get_inputs()
    binding.bind_cpu_input("x", side.x())
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    session.set_providers(CPU)
    seen = [side.attempt(session.run_with_iobinding, binding), inputs[0].shape]
    session = None
    return [*seen, binding.copy_outputs_to_cpu(), inputs[0].name]


@covers("enable_fallback", "disable_fallback", "InferenceSession().enable_fallback")
def falls_back_only_if_told_to(side: Side) -> Any:
    session = side.create(enable_fallback=0)
    seen = [session._enable_fallback]
    session.enable_fallback()
    seen.append(session._enable_fallback)
    session.disable_fallback()
    seen += [session._enable_fallback, session._fallback_providers, session.run(None, side.fed())]

    def enabled(value: Any) -> Any:
        return side.create(enable_fallback=value)._enable_fallback

    return seen + [side.attempt(enabled, value) for value in (0, 1, "0", True, "x", None)]


@covers("run", "run_with_ort_values")
def falls_back_when_a_provider_fails(side: Side) -> Any:
    """A provider's failure in a run, pretended: no provider at hand fails at will."""
    native = ort.capi._pybind_state

    class Failing:
        """A native session whose runs fail; all else is the real one's."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def run(self, *_: Any) -> None:
            raise native.EPFail("pretended")

        run_with_ort_values = run

    seen = []
    for run in ("run", "run_with_ort_values"):
        feed = side.fed() if run == "run" else {"x": ort.OrtValue.ortvalue_from_numpy(side.x())}
        for enabled in (True, False):
            session = side.create(enable_fallback=enabled)
            session._sess = Failing(session._sess)
            results = side.attempt(getattr(session, run), None, feed)
            arrays = [value.numpy() if isinstance(value, ort.OrtValue) else value for value in results]
            seen.append([arrays, session.get_providers(), session._enable_fallback])
    return seen


@covers("get_tuning_results", "set_tuning_results")
def has_tuning_results(side: Side) -> Any:
    session = side.create()
    found = session.get_tuning_results()
    wrong = [{"ep": _UNKNOWN, "results": {}, "validators": {}}]
    return [
        found,
        side.attempt(session.set_tuning_results, found),
        side.attempt(session.set_tuning_results, wrong),
        side.attempt(session.set_tuning_results, wrong, error_on_invalid=True),
        side.attempt(session.set_tuning_results, [3]),
        session.run(None, side.fed()),
    ]


@covers("set_ep_dynamic_options", "release_captured_graph")
def takes_what_other_providers_want(side: Side) -> Any:
    session = side.create()
    return [
        side.attempt(session.set_ep_dynamic_options, {"ep.dynamic.workload_type": "Efficient"}),
        side.attempt(session.set_ep_dynamic_options, {"no such": "value"}),
        side.attempt(session.set_ep_dynamic_options, {}),
        side.attempt(session.set_ep_dynamic_options, 3),
        side.attempt(session.release_captured_graph),
        side.attempt(session.release_captured_graph, 5),
        session.run(None, side.fed()),
    ]


@covers(
    "end_profiling", "get_profiling_start_time_ns", "SessionOptions.enable_profiling", "SessionOptions.profile_file_prefix",
)  # fmt: skip
def writes_a_profile(side: Side) -> Any:
    options = side.options()
    options.enable_profiling, options.profile_file_prefix = True, "mine"
    before = time.time_ns()
    session = side.create(options)
    assert before <= session.get_profiling_start_time_ns() <= time.time_ns()
    for _ in range(3):
        session.run(None, side.fed())
    name = session.end_profiling()
    events = json.loads(Path(name).read_text())
    runs = sum(event["name"] == "model_run" for event in events)
    kinds = sorted({str(event.get("cat")) for event in events})
    return [name, runs, kinds, sorted(events[0]), side.attempt(session.end_profiling), session.run(None, side.fed())]


@covers("end_profiling", "get_profiling_start_time_ns")
def has_no_profile_unless_asked(side: Side) -> Any:
    session = side.create()
    return [session.get_profiling_start_time_ns(), session.end_profiling()]


@covers("set_providers", "end_profiling", "SessionOptions.enable_profiling", models=_SOME[:1], ways=["path"])
def writes_a_profile_of_each_native_session(side: Side) -> Any:
    options = side.options()
    options.enable_profiling, options.profile_file_prefix = True, "mine"
    session = side.create(options)
    session.run(None, side.fed())
    time.sleep(1.01 - time.time() % 1)  # a profile's name has the second
    session.set_providers(CPU)
    session.run(None, side.fed())
    return [session.end_profiling(), sorted(path.stat().st_size > 2 for path in Path.cwd().glob("*.json"))]


@covers()
def copies_share_the_native_session(side: Side) -> Any:
    session = side.create()
    shallow = copy.copy(session)
    seen = [type(shallow) is type(session), shallow._sess is session._sess, shallow.run(None, side.fed())]
    shallow.set_providers(CPU)
    seen += [shallow._sess is session._sess, shallow.run(None, side.fed()), session.run(None, side.fed())]
    del session
    seen.append(shallow.run(None, side.fed()))
    return seen


@covers(ways=("activated",))
def cannot_be_told_from_the_class_itself(side: Side) -> Any:
    session = side.create()
    pickled = [side.attempt(call, session) for call in (copy.deepcopy, pickle.dumps)]
    return [dir(type(session)) == dir(ort.InferenceSession), pickled]


@covers()
def sessions_are_released_with_their_last_reference(side: Side) -> Any:
    session = side.create()
    wrapper, native = weakref.ref(session), weakref.ref(session._sess)
    gc.disable()
    try:
        del session
        return [wrapper() is None, native() is None]
    finally:
        gc.enable()


@covers("get_inputs", "get_session_options", "io_binding")
def what_a_session_gave_outlives_it(side: Side) -> Any:
    session = side.create()
    inputs, options, binding = session.get_inputs(), session.get_session_options(), session.io_binding()
    wrapper = weakref.ref(session)
    del session
    binding.bind_cpu_input("x", side.x())
    return [wrapper() is None, inputs[0].shape, options.logid, plain(options)]


@covers()
def sessions_are_objects_like_others(side: Side) -> Any:
    session, other = side.create(), side.create()
    session.mine = "an attribute"
    public = [name for name, _ in inspect.getmembers(session, inspect.ismethod) if not name.startswith("_")]
    return [
        isinstance(session, ort.InferenceSession),
        session == session,
        session == other,
        len({session, other}),
        bool(session),
        session.mine,
        side.attempt(lambda: session.no_such_attribute.__name__)[:2],
        side.attempt(len, session)[:2],
        side.attempt(session)[:2],
        side.attempt(getattr, session, "__enter__"),
        [str(inspect.signature(getattr(session, name))) for name in ("__init__", *public)],
    ]


@covers(ways=["activated"])
def subclasses_are_what_they_were(side: Side) -> Any:
    class Mine(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, name: str, *, path: Any) -> None:
            super().__init__(path, side.options(), providers=CPU)
            self.name = name

        def run(self, *arguments: Any) -> Any:
            return [self.name, super().run(*arguments)]

    class Overriding(ort.InferenceSession):  # type: ignore[misc]
        def _create_inference_session(self, *arguments: Any, **keywords: Any) -> None:
            self.before = "set before it was made"
            super()._create_inference_session(*arguments, **keywords)

    mine, overriding = Mine("name", path=side.stored), Overriding(side.stored, side.options(), CPU)
    seen = [repr(mine), mine.run(None, side.fed()), overriding.before, overriding.run(None, side.fed())]
    mine.set_providers(CPU)
    return [*seen, mine.run(None, side.fed()), side.attempt(pickle.dumps, mine)]


@covers(ways=["activated"])
def the_class_is_what_it_was(side: Side) -> Any:
    found = ort.InferenceSession
    methods = {name: value for name, value in vars(found).items() if callable(value)}
    return [
        repr(found),
        found is ort.capi.onnxruntime_inference_collection.InferenceSession,
        [base.__qualname__ for base in found.__mro__],
        found.__doc__,
        found.__module__,
        list(vars(found)),
        dir(found),
        str(inspect.signature(found)),
        {name: [str(inspect.signature(value)), value.__qualname__, value.__doc__] for name, value in methods.items()},
        pickle.loads(pickle.dumps(found)) is found,
        repr(side.create()),
        type(side.create()) is found,
        ort.get_all_providers(),
        ort.get_available_providers(),
        ort.get_device(),
    ]
