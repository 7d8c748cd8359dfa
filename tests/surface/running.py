"""Programs that run a session: every way of calling it, with what it takes and what it refuses."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from tests.surface.models import SHIFT, K, N
from tests.surface.probes import probe
from tests.surface.sides import Side

_WAIT = 30  # seconds
_value = ort.OrtValue.ortvalue_from_numpy


def _described(values: Any) -> Any:
    """What OrtValues say of themselves."""
    return [[value.data_type(), value.shape(), value.device_name(), value.numpy()] for value in values]


@probe("run")
def run_with_all_forms_of_output_names(side: Side) -> Any:
    forms: list[Any] = [None, [], (), ["y"], ("y",), ["size", "y"], ["y", "y"], [""], ["no such"], "y", 3, [3], {"y"}]
    return side.attempts(side.create().run, [(form, side.fed()) for form in forms])


@probe("run")
def run_with_all_forms_of_input(side: Side) -> Any:
    x = side.x()
    arrays: list[Any] = [
        x.astype(np.float64), x.astype(np.float16), x[:, :-1], x[0], x[None], x[:0], np.asfortranarray(x),
        np.repeat(x, 2, axis=0)[::2], x.tolist(), None, "text", _value(x),
    ]  # fmt: skip
    shifted = [{"x": x, SHIFT: np.full(length, 5, np.float32)} for length in (N, N - 1)]
    feeds: list[Any] = [{}, {"no such": x}, {"x": x, "no such": x}, *({"x": given} for given in arrays), *shifted, [x], None]
    return side.attempts(side.create().run, [(None, feed) for feed in feeds])


@probe(
    "run",
    RunOptions="terminate logid log_severity_level log_verbosity_level only_execute_path_to_fetches add_run_config_entry "
    "get_run_config_entry",
)
def run_with_run_options(side: Side) -> Iterator[Any]:
    session, options = side.create(), ort.RunOptions()
    options.logid, options.log_severity_level, options.log_verbosity_level = "tag", 4, 0
    options.only_execute_path_to_fetches = True
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    yield session.run(["size"], side.fed(), options), session.run(None, side.fed(), run_options=options)
    options.terminate = True
    yield side.attempt(session.run, None, side.fed(), options)
    options.terminate = False
    yield session.run(None, side.fed(), options), side.attempt(session.run, None, side.fed(), "no options")
    yield options.get_run_config_entry("memory.enable_memory_arena_shrinkage")


@probe("run", RunOptions="add_active_adapter")
def run_with_an_adapter(side: Side) -> Any:
    path = str(side.folder / "adapter.onnx_adapter")
    written, values = ort.AdapterFormat(), np.arange(N, dtype=np.float32)
    written.set_adapter_version(1)
    written.set_model_version(1)
    written.set_parameters({SHIFT: _value(values)})
    written.export_adapter(path)
    adapter, options, session = ort.LoraAdapter(), ort.RunOptions(), side.create()
    adapter.Load(path)
    options.add_active_adapter(adapter)
    plain, adapted = session.run(["y"], side.fed()), session.run(["y"], side.fed(), options)
    assert not np.array_equal(plain[0], adapted[0])
    return [plain, adapted, session.run(["y"], {**side.fed(), SHIFT: values})]


@probe("run_async", SessionOptions="intra_op_num_threads")
def run_async_calls_back(side: Side) -> Iterator[Any]:
    session = side.create()

    def called_back(names: Any, feed: Any, options: Any = None) -> Any:
        given: list[Any] = []
        done = threading.Event()

        def finished(results: Any, user_data: Any, error: str) -> None:
            given.extend([results, user_data, error])
            done.set()

        session.run_async(names, feed, finished, {"user": "data"}, options)
        assert done.wait(_WAIT)
        return given

    stopped = ort.RunOptions()
    stopped.terminate = True
    lists: list[tuple[Any, ...]] = [
        (None, side.fed()), (["size"], side.fed()), (["no such"], side.fed()), (None, {}), (None, {"x": side.x()[0]}),
        (None, {"x": side.x().astype(np.float64)}), (None, side.fed(), stopped),
    ]  # fmt: skip
    yield side.attempts(called_back, lists)
    threadless = side.create(side.options(intra_op_num_threads=1))
    yield side.attempt(threadless.run_async, None, side.fed(), lambda *_: None, None)


@probe("run_with_ort_values", OrtValue="ortvalue_from_numpy")
def run_with_ort_values(side: Side) -> Iterator[Any]:
    session, x, options = side.create(), ort.OrtValue.ortvalue_from_numpy(side.x()), ort.RunOptions()
    options.logid = "tag"
    yield _described(session.run_with_ort_values(None, {"x": x}))
    yield _described(session.run_with_ort_values(["size"], {"x": x}, options))
    refused = [(["no such"], {"x": x}), (None, {}), (None, {"x": side.x()}), (None, {"x": _value(side.x()[0])})]
    yield side.attempts(session.run_with_ort_values, refused)


@probe("run_with_ortvaluevector")
def run_with_vectors_of_ort_values(side: Side) -> Any:
    session, native = side.create(), ort.capi._pybind_state
    cpu = ort.OrtDevice.make("cpu", 0)._get_c_device()

    def run(name: str) -> Any:
        feeds, fetches = native.OrtValueVector(), native.OrtValueVector()
        value = _value(side.x())
        feeds.push_back(value._ortvalue)
        session.run_with_ortvaluevector(ort.RunOptions(), ["x"], feeds, [name], fetches, [cpu])
        return [fetch.numpy() for fetch in fetches]

    return side.attempts(run, [("y",), ("size",), ("no such",)])


@probe(
    "io_binding run_with_iobinding",
    IOBinding="bind_cpu_input bind_output get_outputs copy_outputs_to_cpu clear_binding_inputs clear_binding_outputs "
    "get_outputs_as_ortvaluevector synchronize_inputs synchronize_outputs",
)
def run_with_bindings(side: Side) -> Iterator[Any]:
    session = side.create()
    binding = session.io_binding()
    yield side.attempt(session.run_with_iobinding, binding)
    for rows in (3, 5):
        binding.bind_cpu_input("x", side.x(rows))
        binding.bind_output("y")
        binding.bind_output("size", "cpu", 0)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding, ort.RunOptions())
        binding.synchronize_outputs()
        yield binding.copy_outputs_to_cpu(), _described(binding.get_outputs())
        yield [value.numpy() for value in binding.get_outputs_as_ortvaluevector()]
    binding.clear_binding_outputs()
    yield binding.copy_outputs_to_cpu()
    binding.clear_binding_inputs()
    yield side.attempt(session.run_with_iobinding, binding)


@probe("run_with_iobinding", IOBinding="bind_input bind_output")
def run_with_bound_memory(side: Side) -> Iterator[Any]:
    session, x, y = side.create(), side.x(4), np.zeros((4, N), np.float32)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, TensorProto.FLOAT, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    yield y.copy()
    x *= 2
    session.run_with_iobinding(binding)
    yield y
    yield side.attempts(binding.bind_output, [("y", "cpu", 0, None, None, y.ctypes.data), ("no such",)])
    wrong = [("no such", "cpu"), ("x", "no such")]
    yield side.attempts(binding.bind_input, [(*where, 0, np.float32, x.shape, x.ctypes.data) for where in wrong])


@probe("run_with_iobinding", IOBinding="bind_ortvalue_input bind_ortvalue_output")
def run_with_bound_ort_values(side: Side) -> Iterator[Any]:
    session, other = side.create(), side.create()
    x, y = _value(side.x(4)), ort.OrtValue.ortvalue_from_shape_and_type([4, N], np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    yield y.numpy().copy()
    x.update_inplace(side.x(4) * 2)
    session.run_with_iobinding(binding)
    yield y.numpy()
    own = session.create_ortvalue_from_shape_and_type([4, K], np.float32, "cpu")
    yield side.attempt(other.run_with_iobinding, binding)
    yield side.attempt(lambda: other.io_binding().bind_ortvalue_input("x", own))
    yield side.attempt(lambda: other.io_binding().bind_ortvalue_output("x", own))
    yield side.attempt(binding.bind_ortvalue_input, "x", side.x())


@probe(
    "run create_ortvalue_from_shape_and_type",
    OrtValue="update_inplace ortvalue_from_numpy_with_onnx_type ortvalue_from_shape_and_type ort_value_from_sparse_tensor",
)
def run_with_values_of_all_makes(side: Side) -> Iterator[Any]:
    session, other = side.create(), side.create()
    x = session.create_ortvalue_from_shape_and_type([3, K], np.float32, "cpu")
    same = session.create_ortvalue_from_shape_and_type([3, K], TensorProto.FLOAT, "cpu", 0)
    x.update_inplace(side.x())
    same.update_inplace(x)
    yield _described(session.run_with_ort_values(None, {"x": x})), session.run(None, {"x": same})
    yield [side.attempt(run, None, {"x": x}) for run in (other.run, other.run_with_ort_values)]
    wrong = [([3], np.float32, "cuda"), ([3], "no such", "cpu")]
    yield side.attempts(session.create_ortvalue_from_shape_and_type, wrong)
    typed = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(side.x(), TensorProto.FLOAT)
    shaped = ort.OrtValue.ortvalue_from_shape_and_type([3, K], np.float32)
    shaped.update_inplace(side.x())
    numbers = ort.SparseTensor.sparse_coo_from_numpy(
        np.array([3, K], np.int64), np.ones(2, np.float32), np.array([0, 5], np.int64), ort.OrtDevice.make("cpu", 0)
    )
    sparse = ort.OrtValue.ort_value_from_sparse_tensor(numbers)
    yield side.attempts(session.run, [(None, {"x": value}) for value in (typed, shaped, sparse, numbers)])


@probe(
    "run_with_ort_values",
    OrtValue="data_ptr data_type device_name element_type has_value is_sparse_tensor is_tensor is_tensor_sequence numpy "
    "shape tensor_size_in_bytes as_sparse_tensor from_dlpack",
)
def results_say_what_they_are_and_go_through_dlpack(side: Side) -> Iterator[Any]:
    session = side.create()
    (y,), taken = session.run_with_ort_values(["y"], {"x": _value(side.x())}), ort.OrtValue.from_dlpack
    again, size = session.run_with_ort_values(None, {"x": taken(side.x())})
    del session
    yield y.data_type(), y.device_name(), y.element_type(), y.has_value(), y.is_sparse_tensor(), y.is_tensor()
    yield y.is_tensor_sequence(), y.numpy(), y.shape(), y.tensor_size_in_bytes(), y.data_ptr() != 0
    yield side.attempt(y.as_sparse_tensor), np.asarray(y)
    yield np.from_dlpack(again), np.from_dlpack(size), again.__dlpack_device__()
    yield _described([taken(again), taken(again.__dlpack__())])
    capsule = again._ortvalue.to_dlpack()
    del again
    yield _described([taken(capsule)])


@probe("run")
def run_with_other_sizes_and_from_many_threads(side: Side) -> Iterator[Any]:
    session = side.create()
    yield [session.run(None, side.fed(rows)) for rows in (1, 7, 2, 64, 1)]
    with ThreadPoolExecutor(6) as executor:
        yield list(executor.map(lambda rows: [session.run(None, side.fed(rows)) for _ in range(3)], range(1, 7)))
