"""The first look at a model, before anything else is imported for it: may there be anything to do?

Most models that programs load are small and hold nothing that could be fused. They go on to ONNX Runtime after a few
milliseconds. What this module imports is imported for all of them.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from io import FileIO
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.wire import (
    Copied,
    InMemory,
    fresh_location,
    is_ort_format,
    left_out_bytes,
    may_have_external_data,
    may_hold_small_integers,
    without_large_tensors,
)
from ort_qdq_plugin.ort.hook import CreateCall
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN, LOW_BIT_OPERATORS, options_are_in_models
from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from ort_qdq_plugin.model.outline import Outline
    from ort_qdq_plugin.model.places import Place
    from ort_qdq_plugin.options import Options

__all__ = [
    "UNCHANGED_BYTES",
    "Nothing",
    "dequantizes_nothing",
    "first_look",
    "has_fused_operators",
    "why_nothing_is_fusible",
]

UNCHANGED_BYTES = 16 << 20
"""From so many bytes of large tensors on, handing a model over takes less time and memory than having it parsed."""

# The coarsest step of a file system's clock: a file that is written twice within one keeps its time.
_STEP_NS = 2 * 10**9

_CONTRIB_DOMAIN = b"com.microsoft"  # the domain of fused operators
_QUANTIZE = b"\x0eQuantizeLinear"  # with its length, which tells it from DequantizeLinear
_DYNAMIC = b"DynamicQuantize"  # how such types begin: ...Linear, ...LSTM, ...MatMul


class Nothing:
    """Why there is nothing to do for a model, as a first look shows.

    Attributes:
        reason: The name of a StockReason.
        detail: What varies in that.
        is_listed: Whether the model has quantized weights, which stay.
        seconds: What the look took.
    """

    def __init__(self, reason: str, detail: str = "", *, is_listed: bool = False) -> None:
        self.reason, self.detail, self.is_listed = reason, detail, is_listed
        self.seconds = 0.0


def first_look(
    model: str | bytes, session_options: Any | None, call: CreateCall, options: Options | None
) -> Nothing | Copied | None:
    """Why there is nothing to do for a model. If there may be something, a copy of it for those who do that; None if only
    more than a look can tell, or if a change of the file since then might leave no trace.

    Args:
        model: Its path, or the model itself.
        session_options: The session's onnxruntime.SessionOptions.
        call: The other arguments of the session.
        options: The options of this package; None for the defaults.
    """
    if options_are_in_models():
        return None
    if options is not None and (options.cache_dir is not None or options.prepared is not None):
        return None  # a model that is there already need not be looked at
    start = time.perf_counter()
    try:
        copied = _copied(model)
        nothing = None if copied is None else _nothing(copied.data)
    except Exception:
        # What is wrong with the model, or with a file, is found again by whoever reports it.
        return None
    if copied is None:
        return None
    large = None if nothing is None else _large_places(model, copied)
    if nothing is None or large is not None:
        return copied._replace(places=large) if _is_settled(copied.status) else None
    if (
        nothing.reason != "NOT_QUANTIZED"
        and options is not None
        and (options.accuracy_level, options.block_size) != (None, None)
    ):
        return None  # what ONNX Runtime fuses itself follows these
    if nothing.reason == "NOT_FUSIBLE":
        with fork_lock:
            from ort_qdq_plugin.ort.optimizers import qdq_is_fused
        if not qdq_is_fused(session_options, call.disabled_optimizers):
            return None  # for another reason
    nothing.seconds = time.perf_counter() - start
    return nothing


def _nothing(data: bytes) -> Nothing | None:
    form = dequantizes_nothing(data)
    if form is not None:
        return Nothing("OTHER_FORM", form) if form else Nothing("NOT_QUANTIZED")
    why = why_nothing_is_fusible(data)
    return None if why is None else Nothing("NOT_FUSIBLE", why, is_listed=True)


def _copied(model: str | bytes) -> Copied | None:
    """A model without its large tensors; None for one in ORT format, and for what is no file."""
    location, status = fresh_location(), None
    if isinstance(model, bytes):
        data = without_large_tensors(InMemory(model), location)
    elif model.endswith(".ort") or not stat.S_ISREG(os.stat(model).st_mode):
        # To open what is no file, such as a pipe, may wait, or take what is in it.
        return None
    else:
        with FileIO(model) as file:
            status = os.fstat(file.fileno())
            data = without_large_tensors(_File(file, model, status.st_size), location)
    return Copied(data, location, status) if data and not is_ort_format(data) else None


def _large_places(model: str | bytes, copied: Copied) -> Sequence[Place] | None:
    """Where the large tensors of a model are, if they are so many bytes that it gains by being handed over unchanged."""
    size = len(model) if copied.status is None else copied.status.st_size
    is_inline = not may_have_external_data(copied.data, copied.inline_location)
    if is_inline and left_out_bytes(size, copied.data, copied.inline_location) < UNCHANGED_BYTES:
        return None
    with fork_lock:
        from ort_qdq_plugin.model.places import places
    try:
        found = places(copied.data)
    except (ModelError, UnicodeDecodeError):
        return None
    return found if sum(place.nbytes for place in found) >= UNCHANGED_BYTES else None


def _is_settled(status: os.stat_result | None) -> bool:
    """Whether a change of a file since then can be told by its status; of bytes in memory there is none."""
    return status is None or status.st_mtime_ns < time.time_ns() - _STEP_NS


class _File:
    """An open file, to read from."""

    def __init__(self, file: FileIO, name: str, size: int) -> None:
        self.name, self.size = name, size
        self._file = file

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes at `offset`; ModelError if there are fewer."""
        self._file.seek(offset)
        if self._file.readinto(target) != len(target):
            raise ModelError(f"{self.name}: ends before byte {offset + len(target)}")


def has_fused_operators(data: bytes) -> bool:
    """Whether a model may be helped although nothing is fused: it may have fused operators, or the extensions'.

    `data` is a serialized ModelProto without large tensors (`wire.without_large_tensors`).
    """
    if EXTENSIONS_DOMAIN.encode() in data:
        return True
    return _CONTRIB_DOMAIN in data and any(name.encode() in data for name in LOW_BIT_OPERATORS)


def _has_fused_nodes(outline: Outline) -> bool:
    """The same, beyond doubt, for the nodes of the model's graphs, which is quicker where these have been read."""
    operators, domain = {name.encode() for name in LOW_BIT_OPERATORS}, EXTENSIONS_DOMAIN.encode()
    nodes = (node for graph in outline.graphs for node in graph.nodes)
    return any(node.op_type in operators or node.domain == domain for node in nodes)


def dequantizes_nothing(data: bytes) -> str | None:
    """Whether a model has neither fused operators nor a weight that it dequantizes, be it by other nodes than
    DequantizeLinear: then in which other ways it is quantized, in words, and "" if in none. None: it may have some.

    `data`: as above.
    """
    if b"DequantizeLinear" in data or has_fused_operators(data):
        return None
    if not may_hold_small_integers(data):
        return ""
    with fork_lock:
        from ort_qdq_plugin.model.held import dequantizes_by_hand, other_forms
        from ort_qdq_plugin.model.outline import Outline
    outline = Outline(data)
    return None if dequantizes_by_hand(outline) else other_forms(outline)


def why_nothing_is_fusible(data: bytes) -> str | None:
    """Why nothing in a model can be fused, in words, if a glance at its nodes shows that; None if it may be.

    `data`: as above.
    """
    if _QUANTIZE not in data and _DYNAMIC not in data:
        return None
    # Blocks and elements of less than a byte are fused whatever the activations are.
    if b"block_size" in data:
        return None
    with fork_lock:
        from ort_qdq_plugin.model.glance import is_quantized_throughout
        from ort_qdq_plugin.model.held import dequantizes_by_hand, other_forms
        from ort_qdq_plugin.model.outline import Outline
    outline = Outline(data)
    if not is_quantized_throughout(outline) or dequantizes_by_hand(outline) or _has_fused_nodes(outline):
        return None
    form = other_forms(outline) if _DYNAMIC in data else ""
    return form or "activations are quantized wherever weights are"
