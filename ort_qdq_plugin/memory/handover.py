"""Handing buffers to ONNX Runtime.

The rule is the borrowed hand-over: ``add_external_initializers_from_files_in_memory`` together with
``session.use_external_initializer_file_buffers_directly`` makes a session use our memory in place. Neither can be taken off
a SessionOptions again, and both would break the next model loaded with it, so it needs a private copy of the caller's.
What such a copy cannot carry goes by path: ONNX Runtime maps the same files itself, and only entries that can be put back
change on the caller's object.
"""

from __future__ import annotations

import atexit
import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.extensions import EXTENSIONS_DOMAIN
from ort_qdq_plugin.memory.buffer import PackedBuffer, trim_mapping
from ort_qdq_plugin.memory.sharing import changing
from ort_qdq_plugin.model.skeleton import refer
from ort_qdq_plugin.model.tensors import ByteSource, MemorySource, StoredTensor
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from ort_qdq_plugin.options import FOLDER_KEY, config_entry, memory_is_limited, options_are_in_models

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = [
    "Borrowed",
    "Places",
    "added_providers",
    "borrow",
    "by_path",
    "copy_loses_something",
    "keep_until_destroyed",
    "private_options",
    "supplies_initializers",
    "trimming",
]

_DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
_PARALLEL_KEY = "session.prepack.enable_parallel"

_TRIM_INTERVAL = 0.01  # seconds; ONNX Runtime pre-packs some 10 MB meanwhile

# Operator domains that ONNX Runtime's own builds register.
_SHIPPED_DOMAINS = {
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.microsoft.experimental", "com.microsoft.dml", "com.ms.internal.nhwc", "org.pytorch.aten",
}  # fmt: skip

Borrowed = Mapping[str, "mmap.mmap | bytes"]
"""Location in the model -> buffer that stands for the file of that name."""


class Places:
    """Where external tensors of the rewritten model find their bytes.

    Borrowed: `buffers` has a buffer for every location given out, and `mappings` those among them that are shared mappings
    of files, whose pages may be dropped at any moment. By path: locations are paths below the root directory.
    """

    def __init__(self, through_paths: bool, packed: Sequence[PackedBuffer]) -> None:
        self.buffers: dict[str, mmap.mmap | bytes] = {}
        self.mappings: list[mmap.mmap] = []
        self._through_paths = through_paths
        self._locations: dict[ByteSource, str] = {}
        self._packed = [
            _below_root(buffer.path) if buffer.path is not None else self._new_location(buffer.mapping) for buffer in packed
        ]
        self.mappings += [buffer.mapping for buffer in packed if buffer.in_file]

    def put(self, tensor: TensorProto, stored: StoredTensor) -> None:
        """Make `tensor` refer to `stored` where it is, or hold its bytes where nothing can refer to them."""
        in_memory = isinstance(stored.source, MemorySource)
        if (in_memory and (self._through_paths or stored.nbytes < LARGE_TENSOR_BYTES)) or not stored.nbytes:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = stored.read().tobytes()
            return
        if stored.source not in self._locations:
            self._locations[stored.source] = (
                _below_root(stored.source.name) if self._through_paths else self._borrow(stored.source)
            )
        refer(tensor, self._locations[stored.source], stored.offset, stored.nbytes)

    def put_packed(self, tensor: TensorProto, segment: int, offset: int, nbytes: int) -> None:
        """Make `tensor` refer to byte `offset` of a packed buffer."""
        refer(tensor, self._packed[segment], offset, nbytes)

    def _borrow(self, source: ByteSource) -> str:
        buffer = source.buffer()
        if isinstance(buffer, mmap.mmap):
            self.mappings.append(buffer)
        return self._new_location(buffer)

    def _new_location(self, buffer: mmap.mmap | bytes) -> str:
        location = f"ort-qdq-plugin/{len(self.buffers)}"
        self.buffers[location] = buffer
        return location


def _below_root(path: str) -> str:
    return os.path.relpath(os.path.realpath(path), os.sep)


def added_providers(session_options: Any) -> tuple[str, ...]:
    """Names of the providers that a session with these options, and no others, would have.

    None are known where asking would leave files behind: the session that is asked would write what the caller wants of his.
    """
    if session_options.enable_profiling or session_options.optimized_model_filepath:
        return ("an added provider that cannot be told",)
    session = _throw_away_session(session_options, _empty_model())
    session.initialize_session([], [], set())
    return tuple(session.get_providers())


def private_options(session_options: Any | None) -> Any:
    """A SessionOptions of our own that says what the caller's does.

    Only ONNX Runtime can copy one: it does so for the options of a new session. Custom-op libraries and providers that were
    added to the caller's are lost.
    """
    if session_options is None:
        return onnxruntime.SessionOptions()
    session = _throw_away_session(session_options, _empty_model())
    copy = session.session_options
    if session_options.enable_profiling:
        # The throw-away session has begun a profile of its own.
        with suppress(OSError):
            os.unlink(session.end_profiling())
    return copy


def copy_loses_something(session_options: Any | None, model: ModelProto, domains: set[str]) -> bool:
    """Whether private_options would lose what this model needs: added providers, or a custom-op library.

    `domains`: those of all operators in the model's graphs.
    """
    if session_options is None:
        return False
    of_functions = {function.domain for function in model.functions}
    used = domains | {node.domain for function in model.functions for node in function.node}
    # What the extensions' library has can be registered anew.
    return bool(used - _SHIPPED_DOMAINS - of_functions - {EXTENSIONS_DOMAIN}) or bool(session_options.has_providers())


def borrow(options: Any, buffers: Borrowed) -> None:
    """Make sessions created with `options`, a private copy, use `buffers` in place.

    ONNX Runtime keeps bare pointers: every buffer must stay until the last such session is destroyed
    (`keep_until_destroyed`).
    """
    _prepack_in_parallel(options)
    if buffers:
        options.add_session_config_entry(_DIRECT_KEY, "1")
        lengths = [len(buffer) for buffer in buffers.values()]
        options.add_external_initializers_from_files_in_memory(list(buffers), list(buffers.values()), lengths)


@contextmanager
def trimming(mappings: Sequence[mmap.mmap]) -> Iterator[None]:
    """While the block runs, and once after it, drop the pages of these shared file mappings from this process.

    ONNX Runtime reads each weight once, to pre-pack it; without this everything read would count until the end. Where no
    thread can be had, or would cost too much, it does.
    """
    finished = threading.Event()

    def trim() -> None:
        for mapping in mappings:
            trim_mapping(mapping, 0, len(mapping))

    def keep_trimming() -> None:
        while not finished.wait(_TRIM_INTERVAL):
            trim()

    if not mappings:
        yield
        return
    thread = threading.Thread(target=keep_trimming, name="ort-qdq-trim", daemon=True)
    if not memory_is_limited():
        with suppress(RuntimeError):
            thread.start()
    try:
        yield
    finally:
        finished.set()
        if thread.ident is not None:
            thread.join()
        trim()


@contextmanager
def by_path(session_options: Any) -> Iterator[None]:
    """While the block runs, sessions created with the caller's options find external data where `Places` says it is."""
    with changing(session_options) as changes:
        for key in (FOLDER_KEY, _PARALLEL_KEY):
            # An entry cannot be removed; ONNX Runtime takes an empty one for none.
            before = config_entry(session_options, key) or ""
            changes.callback(session_options.add_session_config_entry, key, before)
        session_options.add_session_config_entry(FOLDER_KEY, os.sep)
        _prepack_in_parallel(session_options)
        yield


def _prepack_in_parallel(session_options: Any) -> None:
    """Unless the caller has said whether to."""
    if config_entry(session_options, _PARALLEL_KEY) is None:
        session_options.add_session_config_entry(_PARALLEL_KEY, "1")


# Buffers of sessions that are still alive.
_kept: dict[object, tuple[object, ...]] = {}


def keep_until_destroyed(native_session: Any, buffers: tuple[object, ...]) -> None:
    """Hold references to `buffers` until the C++ session is destroyed, whoever else drops his.

    The native object, not its Python wrapper: bindings and metadata can outlive the wrapper. pybind11 clears weak references
    after it has run the C++ destructor.
    """
    key = object()
    _kept[key] = buffers
    finalizer = weakref.finalize(native_session, _kept.pop, key)
    finalizer.atexit = False


@atexit.register
def _pin_for_good() -> None:
    """Let nothing be unmapped by the interpreter's shutdown: a daemon thread may still be inside a run."""
    for buffers in _kept.values():
        for buffer in buffers:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(buffer))


def supplies_initializers(session_options: Any | None) -> bool:
    """Whether the caller added initializers, or files of them, to these options: then a model's own are not what counts.

    Nothing tells; but a session fails in a different way where such a table lacks what its model wants, or has more. (Single
    values added with ``add_initializer`` cannot be seen like this.)
    """
    if session_options is None:
        return False
    options = private_options(session_options)
    options.enable_profiling, options.optimized_model_filepath = False, ""
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    session = _throw_away_session(options, _probe_model())
    try:
        session.initialize_session(["CPUExecutionProvider"], [{}], set())
    except Exception as error:
        return _NO_SUCH_FILE not in str(error)
    return True


def _throw_away_session(session_options: Any, model: bytes) -> Any:
    # ONNX Runtime refuses to read the variable in one session of a process and not in another.
    return _native.InferenceSession(session_options, model, False, options_are_in_models())


_FATAL = 4  # OrtLoggingLevel
_NO_SUCH_FILE = "External data path validation failed"


def _empty_model() -> bytes:
    return _small_model(helper.make_node("Identity", ["x"], ["y"]))


def _probe_model() -> bytes:
    """A model with an initializer in a file that does not exist."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    refer(weight, "ort-qdq-plugin/no-such-file", 0, 4)
    return _small_model(helper.make_node("Add", ["x", "w"], ["y"]), weight)


def _small_model(node: NodeProto, *initializers: TensorProto) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "small", values[:1], values[1:], initializers)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())
