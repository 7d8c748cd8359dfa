"""Programs that ask a session what it is, change what can be changed of it, and treat it as a Python object."""

import copy
import gc
import inspect
import json
import pickle
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort

from tests.support import CPU
from tests.surface.models import K_MAJOR, UNQUANTIZED
from tests.surface.probes import probe
from tests.surface.sides import Side, plain

_CPU, _AZURE, _UNKNOWN = "CPUExecutionProvider", "AzureExecutionProvider", "NoSuchExecutionProvider"
_RECORDING = {"session.record_ep_graph_assignment_info": "1"}


@probe(
    "get_inputs get_outputs get_overridable_initializers get_input_memory_infos get_output_memory_infos get_input_epdevices",
    NodeArg="name type shape",
)
def tells_of_inputs_and_outputs(side: Side) -> Iterator[Any]:
    session = side.create()
    yield [plain(info) for info in (*session.get_input_memory_infos(), *session.get_output_memory_infos())]
    yield [[device.ep_name, device.ep_vendor, device.ep_metadata] for device in session.get_input_epdevices()]
    lists = [session.get_inputs(), session.get_outputs(), session.get_overridable_initializers()]
    yield [str(value) for value in lists[0]]
    del session
    yield [[[value.name, value.type, value.shape] for value in values] for values in lists]


@probe(
    "get_modelmeta",
    ModelMetadata="custom_metadata_map description domain graph_description graph_name producer_name version",
)
def tells_of_the_model(side: Side) -> Iterator[Any]:
    meta = side.create().get_modelmeta()
    yield meta.custom_metadata_map, meta.description, meta.domain, meta.graph_description, meta.graph_name
    yield meta.producer_name, meta.version, plain(meta)
    bare = side.model.proto()
    for field in ("producer_name", "doc_string", "domain", "model_version", "metadata_props"):
        bare.ClearField(field)
    bare.graph.ClearField("doc_string")
    yield plain(side.create(model=side.save(bare, "bare")).get_modelmeta())


@probe("get_provider_graph_assignment_info")
def tells_which_provider_runs_what(side: Side) -> Any:
    assigned = side.create(side.options(_RECORDING)).get_provider_graph_assignment_info()
    unasked = side.create()
    return [sorted({part.ep_name for part in assigned}), side.attempt(unasked.get_provider_graph_assignment_info)]


@probe("get_providers get_provider_options", models=(K_MAJOR, UNQUANTIZED))
def tells_its_providers(side: Side) -> Any:
    given: list[tuple[Any, Any]] = [
        (None, None), ([], None), ((), None), (CPU, None), ((_CPU,), None), ([(_CPU, {})], None), ([(_CPU, {"a": 1})], None),
        (CPU, [{}]), (CPU, [{"a": "1"}]), ([_AZURE, _CPU], None), ([_CPU, _AZURE], [{}, {}]), ([_CPU, _CPU], None),
        ([_UNKNOWN, _CPU], None), ([_UNKNOWN], None), (CPU, []), (CPU, [{}, {}]), ([(_CPU, {})], [{}]), (CPU, [None]),
        (CPU, 3), ([3], None), (3, None), ([(_CPU,)], None), ([[_CPU, {}]], None), (_CPU, None), ([(_CPU, {}, {})], None),
        (None, [{}]), ({_CPU}, None),
    ]  # fmt: skip

    def told(*arguments: Any, **keywords: Any) -> Any:
        session = side.make(side.source(), side.options(), *arguments, **keywords)
        return [session.get_providers(), session.get_provider_options(), session.run(None, side.fed())]

    return [side.attempts(told, given), side.attempts(told, given, enable_fallback=0)]


@probe("set_providers get_providers get_provider_options")
def takes_other_providers(side: Side) -> Iterator[Any]:
    session = side.create()
    given: list[tuple[Any, ...]] = [
        (), (CPU,), (CPU,), ([_AZURE, _CPU],), ([(_CPU, {})],), (CPU, [{}]), ([_UNKNOWN, _CPU],), ([],),
    ]  # fmt: skip
    for arguments in given:
        yield side.attempt(session.set_providers, *arguments)
        if session._sess is None:
            session.set_providers(CPU)
        yield session.get_providers(), session.get_provider_options(), session.get_session_options().logid
        yield session.run(None, side.fed()), [value.shape for value in session.get_outputs()]


@probe("set_providers")
def refuses_impossible_providers(side: Side) -> Iterator[Any]:
    for arguments in (([3],), (CPU, []), (3,), (CPU, [3])):
        session = side.create()
        yield side.attempt(session.set_providers, *arguments), session.get_providers()
        session.set_providers(CPU)
        yield session.run(None, side.fed())


@probe("set_providers run_with_iobinding io_binding")
def keeps_old_bindings_apart(side: Side) -> Iterator[Any]:
    session = side.create()
    binding, inputs = session.io_binding(), session.get_inputs()
    binding.bind_cpu_input("x", side.x())
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    session.set_providers(CPU)
    yield side.attempt(session.run_with_iobinding, binding), inputs[0].shape
    session = None
    yield binding.copy_outputs_to_cpu(), inputs[0].name


@probe("enable_fallback disable_fallback", constructor="enable_fallback")
def falls_back_only_if_told_to(side: Side) -> Iterator[Any]:
    session = side.create(enable_fallback=0)
    yield session._enable_fallback
    session.enable_fallback()
    yield session._enable_fallback
    session.disable_fallback()
    yield session._enable_fallback, session._fallback_providers, session.run(None, side.fed())
    values = (0, 1, "0", True, "x", None)
    yield [side.attempt(lambda value=value: side.create(enable_fallback=value)._enable_fallback) for value in values]


@probe("run run_with_ort_values")
def falls_back_when_a_provider_fails(side: Side) -> Iterator[Any]:
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

    for run in ("run", "run_with_ort_values"):
        feed = side.fed() if run == "run" else {"x": ort.OrtValue.ortvalue_from_numpy(side.x())}
        for enabled in (True, False):
            session = side.create(enable_fallback=enabled)
            session._sess = Failing(session._sess)
            results = side.attempt(getattr(session, run), None, feed)
            arrays = [value.numpy() if isinstance(value, ort.OrtValue) else value for value in results]
            yield arrays, session.get_providers(), session._enable_fallback


@probe("get_tuning_results set_tuning_results set_ep_dynamic_options release_captured_graph")
def takes_what_other_providers_want(side: Side) -> Iterator[Any]:
    session = side.create()
    found, wrong = session.get_tuning_results(), [{"ep": _UNKNOWN, "results": {}, "validators": {}}]
    yield found, side.attempts(session.set_tuning_results, [(found,), (wrong,), ([3],)])
    yield side.attempt(session.set_tuning_results, wrong, error_on_invalid=True), session.run(None, side.fed())
    given: list[Any] = [{"ep.dynamic.workload_type": "Efficient"}, {"no such": "value"}, {}, 3]
    yield side.attempts(session.set_ep_dynamic_options, [(options,) for options in given])
    yield side.attempts(session.release_captured_graph, [(), (5,)]), session.run(None, side.fed())


@probe("end_profiling get_profiling_start_time_ns", SessionOptions="enable_profiling profile_file_prefix")
def writes_a_profile_if_asked(side: Side) -> Iterator[Any]:
    unasked = side.create()
    yield unasked.get_profiling_start_time_ns(), unasked.end_profiling()
    before = time.time_ns()
    session = side.create(side.options(enable_profiling=True, profile_file_prefix="mine"))
    assert before <= session.get_profiling_start_time_ns() <= time.time_ns()
    for _ in range(3):
        session.run(None, side.fed())
    name = session.end_profiling()
    events = json.loads(Path(name).read_text())
    yield name, sum(event["name"] == "model_run" for event in events), sorted({str(event.get("cat")) for event in events})
    yield sorted(events[0]), side.attempt(session.end_profiling), session.run(None, side.fed())


@probe("set_providers end_profiling", SessionOptions="enable_profiling", models=[K_MAJOR], ways=["path"])
def writes_a_profile_of_each_native_session(side: Side) -> Iterator[Any]:
    session = side.create(side.options(enable_profiling=True, profile_file_prefix="mine"))
    session.run(None, side.fed())
    time.sleep(1.01 - time.time() % 1)  # a profile's name has the second
    session.set_providers(CPU)
    session.run(None, side.fed())
    yield session.end_profiling(), sorted(path.stat().st_size > 2 for path in side.folder.glob("*.json"))


@probe()
def copies_share_the_native_session(side: Side) -> Iterator[Any]:
    session = side.create()
    shallow = copy.copy(session)
    yield type(shallow) is type(session), shallow._sess is session._sess, shallow.run(None, side.fed())
    shallow.set_providers(CPU)
    yield shallow._sess is session._sess, shallow.run(None, side.fed()), session.run(None, side.fed())
    del session
    yield shallow.run(None, side.fed())


@probe()
def sessions_are_released_with_their_last_reference(side: Side) -> Any:
    session = side.create()
    wrapper, native = weakref.ref(session), weakref.ref(session._sess)
    gc.disable()
    try:
        del session
        return [wrapper() is None, native() is None]
    finally:
        gc.enable()


@probe("get_inputs get_session_options io_binding")
def what_a_session_gave_outlives_it(side: Side) -> Any:
    session = side.create()
    inputs, options, binding = session.get_inputs(), session.get_session_options(), session.io_binding()
    wrapper = weakref.ref(session)
    del session
    binding.bind_cpu_input("x", side.x())
    return [wrapper() is None, inputs[0].shape, options.logid, plain(options)]


@probe()
def sessions_are_objects_like_others(side: Side) -> Iterator[Any]:
    session, other = side.create(), side.create()
    session.mine = "an attribute"
    yield isinstance(session, ort.InferenceSession), session == session, session == other, len({session, other})
    yield bool(session), session.mine, side.attempt(getattr, session, "__enter__")
    yield [side.attempt(call)[:2] for call in (lambda: session.no_such_attribute, lambda: len(session), session)]
    public = [name for name, _ in inspect.getmembers(session, inspect.ismethod) if not name.startswith("_")]
    yield [str(inspect.signature(getattr(session, name))) for name in ("__init__", *public)]


@probe(ways=["activated"])
def subclasses_are_what_they_were(side: Side) -> Iterator[Any]:
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

    mine, overriding = Mine("name", path=side.source()), Overriding(side.source(), side.options(), CPU)
    yield repr(mine), mine.run(None, side.fed()), overriding.before, overriding.run(None, side.fed())
    mine.set_providers(CPU)
    yield mine.run(None, side.fed()), side.attempt(pickle.dumps, mine)


@probe(ways=["activated"])
def the_class_is_what_it_was(side: Side) -> Iterator[Any]:
    found, session = ort.InferenceSession, side.create()
    # First, as copying leaves an attribute in the class.
    yield [side.attempt(call, session) for call in (copy.deepcopy, pickle.dumps)]
    methods = {name: value for name, value in vars(found).items() if callable(value)}
    yield repr(found), found.__doc__, found.__module__, [base.__qualname__ for base in found.__mro__]
    yield found is ort.capi.onnxruntime_inference_collection.InferenceSession, pickle.loads(pickle.dumps(found)) is found
    yield list(vars(found)), dir(found), str(inspect.signature(found))
    yield {name: [str(inspect.signature(value)), value.__qualname__, value.__doc__] for name, value in methods.items()}
    yield repr(session), type(session) is found, dir(type(session)) == dir(found)
    yield ort.get_all_providers(), ort.get_available_providers(), ort.get_device()
