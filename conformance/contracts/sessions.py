"""Native sessions: who makes them, who keeps them, and when they are gone."""

import gc
import inspect
import os
import signal
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.capi import _pybind_state as native

from conformance.contracts.contract import (
    PARALLEL_KEY,
    counted,
    expect,
    identity_model,
    inline_tensor,
    load,
    meanwhile,
    options_with,
    product_model,
    random_operands,
    result_of,
    sum_model,
)
from conformance.sessions import CPU


def loading_releases_the_interpreter(_folder: Path) -> str:
    """initialize_session releases the GIL, so that a thread can drop pages meanwhile (ort/buffers.py, `trimming`)."""
    k, n = 4096, 16384
    session = native.InferenceSession(options_with(), product_model(k, n, random_operands(k, n)), False, False)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    with meanwhile(tick, pause=0.001):
        before, start = ticks, time.perf_counter()
        session.initialize_session(CPU, [{}], set())
        during, seconds = ticks - before, time.perf_counter() - start
    seen = f"a thread got {during} turns in {seconds * 1e3:.0f} ms"
    # Held, a thread gets one or two turns at the ends.
    expect(during > 3, seen)
    return seen


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def weak_references_end_after_the_session(folder: Path) -> str:
    """Native sessions can be weakly referenced, and their finalizers run when the C++ destructor has: its profile is
    complete, its threads are gone. Only then are borrowed buffers let go (ort/buffers.py, `keep_until_destroyed`)."""
    options = options_with()
    options.intra_op_num_threads = 4
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    before = _threads()
    session = load(sum_model(inline_tensor("w", counted())), options)
    result_of(session)
    during = _threads()
    (profile,) = folder.glob("profile*")
    seen: list[tuple[bool, int]] = []
    weakref.finalize(session._sess, lambda: seen.append((profile.read_text().rstrip().endswith("]"), _threads())))
    expect(not profile.read_text().rstrip().endswith("]"), "the profile is complete too early to tell anything")
    del session
    gc.collect()
    expect(len(seen) == 1, f"the finalizer ran {len(seen)} times")
    complete, after = seen[0]
    expect(complete, "the finalizer ran before the destructor wrote the profile's end")
    expect(after <= before, f"of {during - before} threads {after - before} were still there")
    return f"profile complete, {during - before} threads gone"


def bindings_keep_the_native_session(_folder: Path) -> str:
    """What needs the native session after its Python wrapper is gone keeps it, so that the weak reference lives on
    (ort/buffers.py, `keep_until_destroyed`)."""
    session = load(sum_model(inline_tensor("w", counted())))
    reference = weakref.ref(session._sess)
    holders = {"binding": session.io_binding(), "metadata": session.get_modelmeta()}
    del session
    kept = []
    for name in list(holders):
        gc.collect()
        expect(reference() is not None, f"{name} does not keep it")
        kept.append(name)
        del holders[name]
    gc.collect()
    expect(reference() is None, "it outlives everything that was made from it")
    return f"kept by {' and '.join(kept)}"


def sessions_are_created_where_we_override(_folder: Path) -> str:
    """InferenceSession creates its native session in `_create_inference_session`, also in set_providers, from _model_path or
    _model_bytes and _sess_options, and leaves it in _sess (session.py, `load`)."""
    parameters = list(inspect.signature(ort.InferenceSession._create_inference_session).parameters)
    expected = ["self", "providers", "provider_options", "disabled_optimizers"]
    expect(parameters == expected, f"its parameters are {parameters}")
    seen: list[tuple[object, object]] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
        _model_path: str | None
        _model_bytes: bytes | None

        def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
            seen.append((self._model_path, self._model_bytes))
            original, self._model_bytes = self._model_bytes, identity_model()
            self._sess_options = options_with({PARALLEL_KEY: "1"})
            super()._create_inference_session(providers, provider_options, disabled_optimizers)
            self._model_bytes = original

    model = sum_model(inline_tensor("w", counted()))
    session = Session(model, options_with(), providers=CPU)
    expect(seen == [(None, model)], f"it saw {len(seen)} calls")
    expect(not result_of(session).any(), "the model that was put in its place was not the one loaded")
    parallel = session.get_session_options().get_session_config_entry(PARALLEL_KEY)
    expect(parallel == "1", "the options that were put in their place were not used")
    expect(isinstance(session._sess, native.InferenceSession), "_sess is no native session")
    session.set_providers(CPU)
    expect(len(seen) == 2, "set_providers does not call it")
    return f"({', '.join(expected)}), once per load"


def a_forked_child_can_run_an_idle_session(_folder: Path) -> str:
    """Once a session's threads sleep, a forked child can run it: the thread that runs it does the work of those that the
    child does not have (ort/runs.py)."""
    k, n, threads, runs = 256, 1024, 4, 20
    options = options_with()
    options.intra_op_num_threads = threads
    session = load(product_model(k, n, random_operands(k, n)), options)
    x = np.random.default_rng(4).random((64, k), np.float32)
    expected = result_of(session, x)
    time.sleep(1)
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            os._exit(not all(np.array_equal(result_of(session, x), expected) for _ in range(runs)))
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    expect(status == 0, f"it ended with {status}")
    return f"{runs} runs of a session with {threads} threads"


def a_session_that_names_no_provider_has_the_cpus(_folder: Path) -> str:
    """A session has the CPU provider alone if it names none and none is in its options, whatever else there is; the names of
    known providers that the build lacks are left out (ort/providers.py)."""
    model = identity_model()
    for given in (None, ()):
        session = ort.InferenceSession(model, options_with(), given)
        expect(session.get_providers() == CPU, f"it has {session.get_providers()}")
        session.set_providers()
        expect(session.get_providers() == CPU, f"it has {session.get_providers()} after set_providers()")
    known = [f"{name}ExecutionProvider" for name in ("CoreML", "CUDA", "Dml", "QNN", "Tensorrt")]
    lacking = [name for name in known if name in ort.get_all_providers() and name not in ort.get_available_providers()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in lacking:
            session = ort.InferenceSession(model, options_with(), [name], enable_fallback=0)
            expect(session.get_providers() == CPU, f"{name} is not left out")
    return f"of {len(ort.get_available_providers())} available ones; {len(lacking)} others are left out"


def names_of_added_providers_need_no_node(_folder: Path) -> str:
    """A session of a model without nodes has the providers that were added to its options (ort/copies.py)."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(helper.make_graph([], "g", [value], [value]), opset_imports=[opset], ir_version=8)
    options = options_with()
    options.add_provider(CPU[0], {})
    expect(options.has_providers(), "has_providers() does not tell")
    session = native.InferenceSession(options, model.SerializeToString(), False, False)
    session.initialize_session([], [], set())
    expect(session.get_providers() == CPU, f"it has {session.get_providers()}")
    return f"{session.get_providers()}"
