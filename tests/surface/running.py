"""Programs that run a session: every way of calling it, with what it takes and what it refuses."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from tests.surface.models import SHIFT, K, N
from tests.surface.registry import covers
from tests.surface.sides import Side

_WAIT = 30  # seconds


def _described(values: Any) -> Any:
    """What OrtValues say of themselves."""
    return [[value.data_type(), value.shape(), value.device_name(), value.numpy()] for value in values]


@covers("run")
def run_with_all_forms_of_output_names(side: Side) -> Any:
    session = side.create()
    forms: list[Any] = [None, [], (), ["y"], ("y",), ["size", "y"], ["y", "y"], [""], ["no such"], "y", 3, [3], {"y"}]
    return [side.attempt(session.run, form, side.fed()) for form in forms]


@covers("run")
def run_with_all_forms_of_input(side: Side) -> Any:
    session, x = side.create(), side.x()
    feeds: list[Any] = [
        {},
        {"no such": x},
        {"x": x, "no such": x},
        {"x": x.astype(np.float64)},
        {"x": x.astype(np.float16)},
        {"x": x[:, :-1]},
        {"x": x[0]},
        {"x": x[None]},
        {"x": x[:0]},
        {"x": np.asfortranarray(x)},
        {"x": np.repeat(x, 2, axis=0)[::2]},
        {"x": x.tolist()},
        {"x": None},
        {"x": "text"},
        {"x": ort.OrtValue.ortvalue_from_numpy(x)},
        {"x": x, SHIFT: np.full(N, 5, np.float32)},
        {"x": x, SHIFT: np.full(N - 1, 5, np.float32)},
        [x],
        None,
    ]
    return [side.attempt(session.run, None, feed) for feed in feeds]


@covers("run")
def run_again_and_again_with_other_sizes(side: Side) -> Any:
    session = side.create()
    return [session.run(None, side.fed(rows)) for rows in (1, 7, 2, 64, 1)]


@covers(
    "run", "RunOptions.terminate", "RunOptions.logid", "RunOptions.log_severity_level", "RunOptions.log_verbosity_level",
    "RunOptions.only_execute_path_to_fetches", "RunOptions.add_run_config_entry", "RunOptions.get_run_config_entry",
)  # fmt: skip
def run_with_run_options(side: Side) -> Any:
    session, options = side.create(), ort.RunOptions()
    options.logid, options.log_severity_level, options.log_verbosity_level = "tag", 4, 0
    options.only_execute_path_to_fetches = True
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    results = [session.run(["size"], side.fed(), options), session.run(None, side.fed(), run_options=options)]
    options.terminate = True
    results.append(side.attempt(session.run, None, side.fed(), options))
    options.terminate = False
    results += [session.run(None, side.fed(), options), side.attempt(session.run, None, side.fed(), "no options")]
    return [*results, options.get_run_config_entry("memory.enable_memory_arena_shrinkage")]


@covers("run", "RunOptions.add_active_adapter")
def run_with_an_adapter(side: Side) -> Any:
    path = str(Path.cwd() / "adapter.onnx_adapter")
    written, values = ort.AdapterFormat(), np.arange(N, dtype=np.float32)
    written.set_adapter_version(1)
    written.set_model_version(1)
    written.set_parameters({SHIFT: ort.OrtValue.ortvalue_from_numpy(values)})
    written.export_adapter(path)
    adapter, options, session = ort.LoraAdapter(), ort.RunOptions(), side.create()
    adapter.Load(path)
    options.add_active_adapter(adapter)
    plain, adapted = session.run(["y"], side.fed()), session.run(["y"], side.fed(), options)
    assert not np.array_equal(plain[0], adapted[0])
    return [plain, adapted, session.run(["y"], {**side.fed(), SHIFT: values})]


@covers("run_async")
def run_async_calls_back(side: Side) -> Any:
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
    attempts: list[tuple[Any, ...]] = [
        (None, side.fed()), (["size"], side.fed()), (["no such"], side.fed()), (None, {}), (None, {"x": side.x()[0]}),
        (None, {"x": side.x().astype(np.float64)}), (None, side.fed(), stopped),
    ]  # fmt: skip
    return [side.attempt(called_back, *attempt) for attempt in attempts]


@covers("run_async", "SessionOptions.intra_op_num_threads")
def run_async_without_threads(side: Side) -> Any:
    options = side.options()
    options.intra_op_num_threads = 1
    session = side.create(options)
    return side.attempt(session.run_async, None, side.fed(), lambda *_: None, None)


@covers("run_with_ort_values")
def run_with_ort_values(side: Side) -> Any:
    session, x = side.create(), ort.OrtValue.ortvalue_from_numpy(side.x())
    options = ort.RunOptions()
    options.logid = "tag"
    attempts = [
        lambda: _described(session.run_with_ort_values(None, {"x": x})),
        lambda: _described(session.run_with_ort_values(["size"], {"x": x}, options)),
        lambda: session.run_with_ort_values(["no such"], {"x": x}),
        lambda: session.run_with_ort_values(None, {}),
        lambda: session.run_with_ort_values(None, {"x": side.x()}),
        lambda: session.run_with_ort_values(None, {"x": ort.OrtValue.ortvalue_from_numpy(side.x()[0])}),
    ]
    return [side.attempt(attempt) for attempt in attempts]


@covers("run_with_ortvaluevector")
def run_with_vectors_of_ort_values(side: Side) -> Any:
    session, native = side.create(), ort.capi._pybind_state
    cpu = ort.OrtDevice.make("cpu", 0)._get_c_device()

    def run(name: str) -> Any:
        feeds, fetches = native.OrtValueVector(), native.OrtValueVector()
        value = ort.OrtValue.ortvalue_from_numpy(side.x())
        feeds.push_back(value._ortvalue)
        session.run_with_ortvaluevector(ort.RunOptions(), ["x"], feeds, [name], fetches, [cpu])
        return [fetch.numpy() for fetch in fetches]

    return [side.attempt(run, name) for name in ("y", "size", "no such")]


@covers(
    "io_binding", "run_with_iobinding", "IOBinding.bind_cpu_input", "IOBinding.bind_output", "IOBinding.get_outputs",
    "IOBinding.copy_outputs_to_cpu", "IOBinding.clear_binding_inputs", "IOBinding.clear_binding_outputs",
    "IOBinding.get_outputs_as_ortvaluevector", "IOBinding.synchronize_inputs", "IOBinding.synchronize_outputs",
)  # fmt: skip
def run_with_bindings(side: Side) -> Any:
    session = side.create()
    binding = session.io_binding()
    seen = [side.attempt(session.run_with_iobinding, binding)]
    for rows in (3, 5):
        binding.bind_cpu_input("x", side.x(rows))
        binding.bind_output("y")
        binding.bind_output("size", "cpu", 0)
        binding.synchronize_inputs()
        session.run_with_iobinding(binding, ort.RunOptions())
        binding.synchronize_outputs()
        seen += [binding.copy_outputs_to_cpu(), _described(binding.get_outputs())]
        seen.append([value.numpy() for value in binding.get_outputs_as_ortvaluevector()])
    binding.clear_binding_outputs()
    seen.append(binding.copy_outputs_to_cpu())
    binding.clear_binding_inputs()
    return [*seen, side.attempt(session.run_with_iobinding, binding)]


@covers("run_with_iobinding", "IOBinding.bind_input", "IOBinding.bind_output")
def run_with_bound_memory(side: Side) -> Any:
    session, x, y = side.create(), side.x(4), np.zeros((4, N), np.float32)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, TensorProto.FLOAT, y.shape, y.ctypes.data)
    session.run_with_iobinding(binding)
    x *= 2
    first = y.copy()
    session.run_with_iobinding(binding)
    return [
        first,
        y,
        side.attempt(binding.bind_output, "y", "cpu", 0, None, None, y.ctypes.data),
        side.attempt(binding.bind_input, "no such", "cpu", 0, np.float32, x.shape, x.ctypes.data),
        side.attempt(binding.bind_output, "no such"),
        side.attempt(binding.bind_input, "x", "no such", 0, np.float32, x.shape, x.ctypes.data),
    ]


@covers("run_with_iobinding", "IOBinding.bind_ortvalue_input", "IOBinding.bind_ortvalue_output")
def run_with_bound_ort_values(side: Side) -> Any:
    session, other = side.create(), side.create()
    x, y = ort.OrtValue.ortvalue_from_numpy(side.x(4)), ort.OrtValue.ortvalue_from_shape_and_type([4, N], np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    session.run_with_iobinding(binding)
    first = y.numpy().copy()
    x.update_inplace(side.x(4) * 2)
    session.run_with_iobinding(binding)
    own = session.create_ortvalue_from_shape_and_type([4, K], np.float32, "cpu")
    return [
        first,
        y.numpy(),
        side.attempt(other.run_with_iobinding, binding),
        side.attempt(lambda: other.io_binding().bind_ortvalue_input("x", own)),
        side.attempt(lambda: other.io_binding().bind_ortvalue_output("x", own)),
        side.attempt(binding.bind_ortvalue_input, "x", side.x()),
    ]


@covers("create_ortvalue_from_shape_and_type", "OrtValue.update_inplace")
def run_with_values_of_the_session(side: Side) -> Any:
    session, other = side.create(), side.create()
    x = session.create_ortvalue_from_shape_and_type([3, K], np.float32, "cpu")
    same = session.create_ortvalue_from_shape_and_type([3, K], TensorProto.FLOAT, "cpu", 0)
    x.update_inplace(side.x())
    same.update_inplace(x)
    return [
        _described(session.run_with_ort_values(None, {"x": x})),
        session.run(None, {"x": same}),
        side.attempt(other.run, None, {"x": x}),
        side.attempt(other.run_with_ort_values, None, {"x": x}),
        side.attempt(session.create_ortvalue_from_shape_and_type, [3], np.float32, "cuda"),
        side.attempt(session.create_ortvalue_from_shape_and_type, [3], "no such", "cpu"),
    ]


@covers(
    "run_with_ort_values", "OrtValue.data_ptr", "OrtValue.data_type", "OrtValue.device_name", "OrtValue.element_type",
    "OrtValue.has_value", "OrtValue.is_sparse_tensor", "OrtValue.is_tensor", "OrtValue.is_tensor_sequence",
    "OrtValue.numpy", "OrtValue.shape", "OrtValue.tensor_size_in_bytes", "OrtValue.as_sparse_tensor",
    "OrtValue.ortvalue_from_numpy",
)  # fmt: skip
def results_say_what_they_are(side: Side) -> Any:
    session = side.create()
    (y,) = session.run_with_ort_values(["y"], {"x": ort.OrtValue.ortvalue_from_numpy(side.x())})
    del session
    told = [y.data_type(), y.device_name(), y.element_type(), y.has_value(), y.is_sparse_tensor(), y.is_tensor()]
    told += [y.is_tensor_sequence(), y.numpy(), y.shape(), y.tensor_size_in_bytes(), y.data_ptr() != 0]
    return [*told, side.attempt(y.as_sparse_tensor), np.asarray(y)]


@covers("run_with_ort_values", "OrtValue.from_dlpack")
def results_go_through_dlpack(side: Side) -> Any:
    session, x = side.create(), side.x()
    y, size = session.run_with_ort_values(None, {"x": ort.OrtValue.from_dlpack(x)})
    del session
    seen = [np.from_dlpack(y), np.from_dlpack(size), y.__dlpack_device__()]
    seen += [_described([ort.OrtValue.from_dlpack(y)]), _described([ort.OrtValue.from_dlpack(y.__dlpack__())])]
    capsule = y._ortvalue.to_dlpack()
    del y
    return [*seen, _described([ort.OrtValue.from_dlpack(capsule)])]


@covers(
    "run", "OrtValue.ortvalue_from_numpy_with_onnx_type", "OrtValue.ortvalue_from_shape_and_type",
    "OrtValue.ort_value_from_sparse_tensor",
)  # fmt: skip
def run_with_values_of_all_makes(side: Side) -> Any:
    session = side.create()
    typed = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(side.x(), TensorProto.FLOAT)
    shaped = ort.OrtValue.ortvalue_from_shape_and_type([3, K], np.float32)
    shaped.update_inplace(side.x())
    numbers = ort.SparseTensor.sparse_coo_from_numpy(
        np.array([3, K], np.int64), np.ones(2, np.float32), np.array([0, 5], np.int64), ort.OrtDevice.make("cpu", 0)
    )
    sparse = ort.OrtValue.ort_value_from_sparse_tensor(numbers)
    values = (typed, shaped, sparse, numbers)
    return [side.attempt(session.run, None, {"x": value}) for value in values]


@covers("run")
def run_from_many_threads(side: Side) -> Any:
    session, results = side.create(), {}

    def run(rows: int) -> None:
        results[rows] = [session.run(None, side.fed(rows)) for _ in range(3)]

    threads = [threading.Thread(target=run, args=[rows]) for rows in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rows] for rows in sorted(results)]
