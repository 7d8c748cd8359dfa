"""create_session: the journey of a model on one page."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # registers locks for forks: before `_preparing`, which is waited for
import functools
import importlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.errors import ModelError, QdqPluginError, SourceUnreadableError, readable
from ort_qdq_plugin.extensions import EXTENSIONS_DOMAIN, register_extensions
from ort_qdq_plugin.memory.sharing import reading
from ort_qdq_plugin.model.quantized import WEIGHT_TYPES
from ort_qdq_plugin.model.skeleton import Skeleton, external_tensors, open_skeleton
from ort_qdq_plugin.options import (
    FOLDER_KEY,
    Options,
    config_entry,
    is_accuracy_level,
    is_block_size,
    options_are_in_models,
    thread_count,
)
from ort_qdq_plugin.report import Fusion, Report, Unfused

if TYPE_CHECKING:
    from onnx import TensorProto

    from ort_qdq_plugin.fusion.gather import GatherFusion
    from ort_qdq_plugin.fusion.match import Matches
    from ort_qdq_plugin.fusion.matmul import MatMulFusion
    from ort_qdq_plugin.fusion.rewrite import FreshNames
    from ort_qdq_plugin.memory.buffer import PackedBuffer
    from ort_qdq_plugin.memory.handover import Places
    from ort_qdq_plugin.model.graph import Scope
    from ort_qdq_plugin.model.skeleton import OpenedModel
    from ort_qdq_plugin.model.tensors import StoredTensor
    from ort_qdq_plugin.packing.layout import Layout, Operand

__all__ = ["Loading", "create_session", "inspect", "load", "report_of"]

_log = logging.getLogger("ort_qdq_plugin")

# Execution providers that run MatMulNBits and do not want the QDQ form themselves. Azure's runs no ordinary node.
_PROVIDERS = {f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Dml", "WebGpu", "Azure")}

_ACCURACY_KEY, _DEFAULT_ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level", 4
_BLOCK_SIZE_KEY, _DEFAULT_BLOCK_SIZE = "session.qdq_matmulnbits_block_size", 0
_NO_QDQ_KEY, _QDQ_OPTIMIZER = "session.disable_quant_qdq", "QDQSelectorActionTransformer"
_MAX_STEM = 200  # of a name, which every fused node repeats
_OPTIONS_IN_MODEL = "ort_config"  # key of ModelProto.metadata_props
_FORMAT_KEY = "session.load_model_format"

# Packed weights take about what is stored of them, some dozen times that where blocks are mostly padding. Only tensors that
# overlap each other by the hundreds, as no exporter writes them, go beyond both of these.
_GROWTH, _GROWTH_BYTES = 16, 64 << 20


def create_session(
    path_or_bytes: str | os.PathLike[str] | bytes,
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
    provider_options: Sequence[dict[Any, Any]] | None = None,
    *,
    options: Options | None = None,
    **kwargs: Any,
) -> onnxruntime.InferenceSession:
    """An InferenceSession for the model, its dequantized products fused and its weights handed over without a copy.

    Takes what ``onnxruntime.InferenceSession`` takes, with the same meaning; `options` are this package's own. Whatever
    ONNX Runtime can load loads: where this package cannot help it logs one warning at most and leaves the untouched model to
    stock ONNX Runtime, whose errors are raised as they are. With ``Options(strict=True)`` the cause is raised instead.

    >>> session = create_session("model.onnx")  # doctest: +SKIP
    >>> print(report_of(session))  # doctest: +SKIP
    """
    session = _Session.__new__(_Session)
    session._ort_qdq_loading = Loading(options or Options())
    onnxruntime.InferenceSession.__init__(session, path_or_bytes, sess_options, providers, provider_options, **kwargs)
    return session


def report_of(session: onnxruntime.InferenceSession) -> Report | None:
    """What was done for this session; None for one that this package did not create."""
    loading = getattr(session, "_ort_qdq_loading", None)
    return loading.report if isinstance(loading, Loading) else None


def inspect(path_or_bytes: str | os.PathLike[str] | bytes, *, options: Options | None = None) -> Report:
    """What create_session would do with the model under default session options; reads no weight and creates no session.

    Raises ModelError or OSError where the model cannot be opened.
    """
    clock = _Clock()
    request = _Request(_as_model(path_or_bytes), None, options or Options())
    opened = _open(request, clock)
    if isinstance(opened, str):
        return Report("inspect", passed_through=opened, seconds=clock.seconds)
    with closing(opened.skeleton):
        decided = _decide(opened, request, clock)
    report = decided if isinstance(decided, Report) else decided.report
    return replace(report, route="inspect", seconds=clock.seconds)


@dataclass(frozen=True)
class _Request:
    """What is to be loaded, and how. `session_options` is the caller's object: read, never changed."""

    model: str | bytes
    session_options: Any | None
    options: Options
    providers: tuple[str, ...] = ()
    disabled_optimizers: frozenset[str] = frozenset()

    @property
    def accuracy_level(self) -> int:
        """The level for fused nodes; ModelError where the session's own entry makes no sense (ONNX Runtime refuses it)."""
        return self._setting(self.options.accuracy_level, _ACCURACY_KEY, _DEFAULT_ACCURACY_LEVEL, is_accuracy_level)

    @property
    def block_size(self) -> int:
        """The block size for weights without blocks."""
        return self._setting(self.options.block_size, _BLOCK_SIZE_KEY, _DEFAULT_BLOCK_SIZE, is_block_size)

    def _setting(self, ours: int | None, key: str, default: int, makes_sense: Any) -> int:
        if ours is not None:
            return ours
        text = config_entry(self.session_options, key)
        if not text:
            return default
        try:
            value = int(text)
        except ValueError:
            raise ModelError(f"session option {key} is {text!r}") from None
        if not makes_sense(value):
            raise ModelError(f"session option {key} is {text!r}")
        return value

    @property
    def may_fuse(self) -> bool:
        """Whether the session's options leave fusing QDQ to ONNX Runtime."""
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options = self.session_options
        below = options is not None and options.graph_optimization_level.value < level.value
        return not (below or config_entry(options, _NO_QDQ_KEY) == "1" or _QDQ_OPTIMIZER in self.disabled_optimizers)


@dataclass(frozen=True)
class _Decided:
    """The opened model, what is fused in it, where every operand will be, and all that as a report."""

    opened: OpenedModel
    scope: Scope
    domains: set[str]
    matches: Matches
    layout: Layout
    report: Report


@dataclass(frozen=True)
class _Prepared:
    """Everything a session needs. `places` has what it borrows; `packed` have paths in by-path mode."""

    model: bytes
    options: Any
    by_path: bool
    places: Places
    packed: tuple[PackedBuffer, ...]
    report: Report


@dataclass
class Loading:
    """What this package knows of one session: how it was asked to load it, what it prepared, and what came of it.

    `prepared` is kept for `set_providers`, which makes the native session anew.
    """

    options: Options
    prepared: _Prepared | None = None
    report: Report = field(default_factory=lambda: Report("stock"))


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime is untyped
    """An InferenceSession that makes the journey each time it creates its native session (also in set_providers)."""

    def _create_inference_session(self, providers: Any, provider_options: Any, disabled_optimizers: Any = None) -> None:
        load(self, self._ort_qdq_loading, providers, provider_options, disabled_optimizers)


for _attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
    setattr(_Session, _attribute, getattr(onnxruntime.InferenceSession, _attribute))


def _original(method: Any) -> Any:
    return getattr(method, "_ort_qdq_stock", method)


# Bound at import: activation may later replace the method, or have done so already.
_stock_create = _original(onnxruntime.InferenceSession._create_inference_session)


def load(session: Any, loading: Loading, providers: Any, provider_options: Any, disabled_optimizers: Any) -> None:
    """Create the native session of an InferenceSession: in place of its own method, which takes the same arguments."""
    arguments = (providers, provider_options, disabled_optimizers)
    session_options = session._sess_options
    if session_options is not None and not isinstance(session_options, onnxruntime.SessionOptions):
        # For its own complaint.
        _stock_create(session, *arguments)
        return
    if not _load_prepared(session, session_options, loading, arguments):
        loading.prepared = None
        with reading(session_options):
            _stock_create(session, *arguments)
    _log.info("%s: %s", session._model_path or "<bytes>", loading.report.summary())


_Arguments = tuple[Any, Any, Any]
"""providers, provider_options, disabled_optimizers: what the class gives the method that creates its native session."""


def _load_prepared(session: Any, session_options: Any | None, loading: Loading, arguments: _Arguments) -> bool:
    """Create the native session from a prepared model; False, with the reason in the report, where stock has to."""
    try:
        with reading(session_options):
            prepared = _prepared_for(session, session_options, loading, arguments)
        if prepared is not None:
            _create_prepared(session, session_options, loading, prepared, arguments)
            return True
    except SourceUnreadableError:
        # Stock ONNX Runtime has no error for this.
        raise
    except Exception as error:
        session._sess_options = session_options
        if loading.options.strict:
            if isinstance(error, (ValueError, RuntimeError)):
                # The base class would take these for a provider's and try again with another one.
                raise QdqPluginError(f"{type(error).__name__}: {error}") from error
            raise
        loading.report = Report("stock", passed_through=f"{type(error).__name__}: {error}")
        _log.warning("loading with stock ONNX Runtime, without this package: %s", loading.report.passed_through)
    return False


def _prepared_for(session: Any, session_options: Any | None, loading: Loading, arguments: _Arguments) -> _Prepared | None:
    """The prepared model; None, with the reason in the report, where there is nothing for us to do."""
    model = session._model_path if session._model_path is not None else session._model_bytes
    names = _provider_names(arguments[0], session_options)
    request = _Request(model, session_options, loading.options, names, frozenset(arguments[2] or ()))
    if loading.prepared is not None and _unsupported_provider(request) is None:
        return loading.prepared
    outcome = _prepare(request)
    if isinstance(outcome, Report):
        loading.report = outcome
        return None
    return outcome


def _create_prepared(
    session: Any, session_options: Any | None, loading: Loading, prepared: _Prepared, arguments: _Arguments
) -> None:
    from ort_qdq_plugin.memory.handover import by_path, keep_until_destroyed, private_options, trimming

    clock = _Clock(prepared.report.seconds)
    # What get_session_options() will give: the caller may load other models with it. Made before the session, whose profile
    # has the name that a copy's has within the same second.
    as_said = private_options(session_options)
    original = session._model_path, session._model_bytes
    # The base class's own attributes, which it hands to the native session; afterwards they say again what the caller said.
    session._model_path, session._model_bytes, session._sess_options = None, prepared.model, prepared.options
    try:
        handing_over = by_path(prepared.options) if prepared.by_path else trimming(prepared.places.mappings)
        with clock.stage("hand over"), handing_over:
            _stock_create(session, *arguments)
    except BaseException:
        session._sess_options = session_options
        raise
    finally:
        session._model_path, session._model_bytes = original
        for buffer in prepared.packed:
            buffer.unlink()
    if not prepared.by_path:
        keep_until_destroyed(session._sess, tuple(prepared.places.buffers.values()))
        loading.prepared = prepared
    for buffer in prepared.packed:
        # Only now is it certain that ONNX Runtime has read what was packed.
        buffer.seal()
    session._sess_options = as_said
    loading.report = replace(prepared.report, seconds=clock.seconds)


def _prepare(request: _Request) -> _Prepared | Report:
    """open -> match -> plan -> pack -> ready to hand over, or why the model goes to stock ONNX Runtime as it is."""
    clock = _Clock()
    try:
        opened = _open(request, clock)
    except (ModelError, OSError) as error:
        # What cannot be opened is ONNX Runtime's to complain about.
        opened = str(error)
    if isinstance(opened, str):
        return Report("stock", passed_through=opened, seconds=clock.seconds)
    with closing(opened.skeleton):
        decided = _decide(opened, request, clock)
        return decided if isinstance(decided, Report) else _hand_over(decided, request, clock)


def _open(request: _Request, clock: _Clock) -> OpenedModel | str:
    refused = _unsupported_provider(request)
    if refused is not None:
        return f"{refused} does not run MatMulNBits, or wants the QDQ form itself"
    if config_entry(request.session_options, _FORMAT_KEY) == "ORT":
        return "the model is to be read in ORT format"
    if isinstance(request.model, str) and request.model.endswith(".ort"):
        return "the model is in ORT format"
    with clock.stage("open"):
        skeleton = open_skeleton(request.model, config_entry(request.session_options, FOLDER_KEY))
        if skeleton is None:
            return "this is no ONNX model in protobuf form"
        with ExitStack() as undo:
            undo.callback(skeleton.close)
            if not _has_work(skeleton, request):
                return "nothing in it is quantized"
            if options_are_in_models() and skeleton.mentions(_OPTIONS_IN_MODEL):
                return "its session options are in the model"
            _import_the_rest()
            opened = skeleton.parse()
            undo.pop_all()
        return opened


# What one thread is importing while another forks the process can never be imported in the child: that waits for a thread
# which does not exist there. So a fork waits until everything is there.
_preparing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_preparing.acquire, after_in_parent=_preparing.release, after_in_child=_preparing.release)

_IMPORTED_LATE = (
    "onnx.inliner",
    "ort_qdq_plugin.fusion.match",
    "ort_qdq_plugin.fusion.rewrite",
    "ort_qdq_plugin.memory.handover",
    "ort_qdq_plugin.packing.pack",
)


@functools.cache
def _import_the_rest() -> None:
    """Import what only models that there is something to do for need."""
    with _preparing:
        for module in _IMPORTED_LATE:
            importlib.import_module(module)


@functools.cache
def _prepare_process() -> None:
    """Have all made that ONNX Runtime and Python make once in a process."""
    _import_the_rest()
    with _preparing:
        from ort_qdq_plugin.memory.handover import supplies_initializers

        # ONNX Runtime makes its tables of kernels with the first session, tempfile looks for its directory when first asked:
        # both under locks.
        supplies_initializers(onnxruntime.SessionOptions())
        with suppress(OSError):
            tempfile.gettempdir()


def _has_work(skeleton: Skeleton, request: _Request) -> bool:
    fuses = request.may_fuse and skeleton.mentions("DequantizeLinear")
    return fuses or skeleton.mentions("MatMulNBits") or skeleton.mentions(EXTENSIONS_DOMAIN)


def _decide(opened: OpenedModel, request: _Request, clock: _Clock) -> _Decided | Report:
    with clock.stage("match"):
        from ort_qdq_plugin.fusion.match import Matches, match
        from ort_qdq_plugin.model.graph import check_imports, domains, model_scope
        from ort_qdq_plugin.packing.layout import plan_layout

        with readable():
            scope = model_scope(opened.proto)
            matches = match(scope, opened.locate, request.block_size) if request.may_fuse else Matches()
    with clock.stage("plan"):
        wanted = [fusion.weight for fusion in matches.products]
        layout = plan_layout(wanted, thread_count(request.options, request.session_options))
    report = _report(matches, layout)
    # A model with fused nodes of its own gains by the hand-over alone; one with operators of the extensions needs them.
    borrows = opened.skeleton.mentions("MatMulNBits") and any(external_tensors(opened.proto.graph))
    used = domains(scope)
    check_imports(opened.proto, used)
    if not matches.fusions and not borrows and EXTENSIONS_DOMAIN not in used:
        return replace(report, passed_through="nothing in it can be fused", seconds=clock.seconds)
    stored_bytes, packed_bytes = opened.skeleton.stored_bytes, sum(layout.sizes)
    if packed_bytes > max(_GROWTH_BYTES, _GROWTH * stored_bytes):
        too_much = f"its {stored_bytes} bytes would be {packed_bytes} when packed"
        return replace(report, passed_through=too_much, seconds=clock.seconds)
    return _Decided(opened, scope, used, matches, layout, report)


def _hand_over(decided: _Decided, request: _Request, clock: _Clock) -> _Prepared | Report:
    """Pack, put the result into the model, and say where ONNX Runtime finds every byte."""
    _prepare_process()
    from ort_qdq_plugin.fusion.rewrite import FreshNames, lift_from_subgraphs
    from ort_qdq_plugin.memory.buffer import make_buffers
    from ort_qdq_plugin.memory.handover import Places, borrow, copy_loses_something, private_options, supplies_initializers
    from ort_qdq_plugin.packing.pack import pack

    if supplies_initializers(request.session_options):
        return replace(
            decided.report, passed_through="initializers were added to its session options", seconds=clock.seconds
        )
    opened, wishes = decided.opened, request.options
    through_paths = copy_loses_something(request.session_options, opened.proto, decided.domains)
    if request.session_options is not None and through_paths and request.session_options.optimized_model_filepath:
        # It would be saved with references to files that are about to go.
        return replace(decided.report, passed_through="its optimized model is to be saved", seconds=clock.seconds)
    spill_dir = None if wishes.spill_dir is None else os.fspath(wishes.spill_dir)
    with ExitStack() as undo:
        with clock.stage("pack"):
            packed = make_buffers(decided.layout.sizes, wishes.buffer, spill_dir, linkable=through_paths)
            for buffer in packed:
                undo.callback(buffer.discard)
            if packed:
                pack(decided.layout, packed, thread_count(wishes, request.session_options), wishes.progress)
            if through_paths:
                for buffer in packed:
                    buffer.link()
        with clock.stage("plan"):
            places = Places(through_paths, packed)
            names = FreshNames(decided.scope)
            initializers = _put_fusions_in_place(decided, places, names, request.accuracy_level)
            lift_from_subgraphs(opened.proto.graph, names)
            for tensor in external_tensors(opened.proto.graph):
                places.put(tensor, opened.locate(tensor))
            opened.proto.graph.initializer.extend(initializers)
            # Last, when everything has been read or mapped: what was packed and what is used in place belong together.
            opened.skeleton.check_unchanged()
            model = opened.proto.SerializeToString()
            session_options = request.session_options
            if not through_paths:
                session_options = private_options(request.session_options)
                if EXTENSIONS_DOMAIN in decided.domains:
                    register_extensions(session_options)
                borrow(session_options, places.buffers)
        undo.pop_all()
    report = replace(decided.report, route="by path" if through_paths else "borrowed", seconds=clock.seconds)
    return _Prepared(model, session_options, through_paths, places, tuple(packed), report)


def _put_fusions_in_place(decided: _Decided, places: Places, names: FreshNames, accuracy_level: int) -> list[TensorProto]:
    """Rewrite the graph; the initializers that it wants now, with their bytes where `places` says."""
    from onnx import TensorProto

    from ort_qdq_plugin.fusion.rewrite import FusedOperands, Rewriter

    initializers: list[TensorProto] = []
    made: dict[tuple[object, ...], FusedOperands] = {}

    def initializer(name: str, data_type: int, shape: tuple[int, ...]) -> TensorProto:
        initializers.append(TensorProto(name=names.fresh(name), data_type=data_type, dims=shape))
        return initializers[-1]

    def operand_name(operand: Operand | None, name: str) -> str:
        if operand is None:
            return ""
        tensor = initializer(name, operand.data_type, operand.shape)
        if operand.in_place is not None:
            places.put(tensor, operand.in_place)
        else:
            places.put_packed(tensor, operand.segment, operand.offset, operand.nbytes)
        return str(tensor.name)

    def reshaped_name(stored: StoredTensor | None, name: str, shape: tuple[int, ...] | None) -> str:
        """The tensor called `name`, or where it needs another shape a new one of the same bytes."""
        if stored is None or shape is None:
            return name
        tensor = initializer(f"{name}.reshaped", stored.data_type, shape)
        places.put(tensor, stored)
        return str(tensor.name)

    rewriter = Rewriter(decided.opened.proto, decided.scope, names)
    for product in decided.matches.products:
        weight = product.weight
        if weight.key not in made:
            packed = decided.layout.of(weight)
            stem = f"{(weight.matrix.weight.name or product.dequantize)[:_MAX_STEM]}.MatMulNBits"
            made[weight.key] = FusedOperands(
                operand_name(packed.b, f"{stem}.B"),
                operand_name(packed.scales, f"{stem}.scales"),
                operand_name(packed.zero_points, f"{stem}.zero_points"),
            )
        rewriter.product(product, made[weight.key], accuracy_level)
    for gather in decided.matches.gathers:
        table, shape = gather.dequantized, gather.scale_shape
        scales = reshaped_name(table.scales, table.names[1], shape)
        rewriter.gather(gather, scales, reshaped_name(table.zero_points, table.names[2], shape))
    return [*initializers, *rewriter.finish()]


def _report(matches: Matches, layout: Layout) -> Report:
    """What was decided, before anything has been done about it."""
    products = [_product_entry(fusion, layout) for fusion in matches.products]
    gathers = [_gather_entry(fusion) for fusion in matches.gathers]
    in_place = [tensor for weight in layout.weights.values() for tensor in weight.in_place]
    in_place += [tensor for fusion in matches.gathers for tensor in fusion.operands]
    return Report(
        "stock",
        fused=(*products, *gathers),
        unfused=tuple(Unfused(left.dequantize, left.weight, left.reason, left.bytes_per_run) for left in matches.left_alone),
        packed_bytes=sum(weight.packed_bytes for weight in layout.weights.values()),
        borrowed_bytes=sum({tensor.storage: tensor.nbytes for tensor in in_place}.values()),
    )


def _product_entry(fusion: MatMulFusion, layout: Layout) -> Fusion:
    weight, matrix = layout.of(fusion.weight), fusion.weight.matrix
    return Fusion(
        node=fusion.name,
        dequantize=fusion.dequantize,
        kind=fusion.kind,
        k=matrix.k,
        n=matrix.n,
        bits=matrix.bits,
        block_size=fusion.weight.block_size,
        layout="K-major" if matrix.k_major else "N-major",
        packed_bytes=weight.packed_bytes,
        borrowed_bytes=weight.borrowed_bytes,
        has_bias=fusion.bias is not None,
    )


def _gather_entry(fusion: GatherFusion) -> Fusion:
    table = fusion.dequantized
    return Fusion(
        node=fusion.name,
        dequantize=fusion.dequantize,
        kind=fusion.kind,
        k=table.weight.shape[1],
        n=table.weight.shape[0],
        bits=WEIGHT_TYPES[table.weight.data_type][0],
        block_size=fusion.block_size,
        layout="N-major",
        packed_bytes=0,
        borrowed_bytes=sum(operand.nbytes for operand in fusion.operands),
        has_bias=False,
    )


def _as_model(path_or_bytes: str | os.PathLike[str] | bytes) -> str | bytes:
    return path_or_bytes if isinstance(path_or_bytes, bytes) else os.fspath(path_or_bytes)


def _provider_names(providers: Any, session_options: Any | None) -> tuple[str, ...]:
    """The providers a session will have; those that it was not told of are ONNX Runtime's defaults."""
    if providers:
        return tuple(provider if isinstance(provider, str) else provider[0] for provider in providers)
    if session_options is not None and session_options.has_providers():
        _prepare_process()
        from ort_qdq_plugin.memory.handover import added_providers

        return added_providers(session_options)
    return tuple(_native.get_available_providers())


def _unsupported_provider(request: _Request) -> str | None:
    return next((name for name in request.providers if name not in _PROVIDERS), None)


class _Clock:
    """Seconds per stage."""

    def __init__(self, seconds: Any = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's time to stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
