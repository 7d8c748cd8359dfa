"""The first stage of a load: open the model, and see whether there is anything to do. It imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ort_qdq_plugin.errors import LeaveToStock, ModelError, NothingToDo
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.skeleton import Skeleton, open_skeleton
from ort_qdq_plugin.ort.extensions import EXTENSIONS_DOMAIN
from ort_qdq_plugin.ort.keys import (
    FOLDER_KEY,
    FORMAT_KEY,
    LOW_BIT_OPERATORS,
    OPTIONS_IN_MODEL,
    config_entry,
    options_are_in_models,
)
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.system.forks import fork_lock

__all__ = [
    "UNCHANGED_BYTES",
    "check_fusible",
    "glance_at",
    "is_worth_handing_over",
    "leave_unreadable_to_stock",
    "open_model",
]

UNCHANGED_BYTES = 16 << 20
"""From so many bytes of large tensors on, handing a model over takes less time and memory than having it parsed."""


def open_model(request: LoadRequest) -> Skeleton:
    """Open the model of a request. The caller closes it.

    Raises:
        LeaveToStock: There is nothing to do for it.
        ModelError, OSError: It cannot be opened.
    """
    if config_entry(request.session_options, FORMAT_KEY) == "ORT":
        raise LeaveToStock(StockReason.ORT_FORMAT, f"{FORMAT_KEY} is ORT")
    is_ort = isinstance(request.model, str) and request.model.endswith(".ort")
    skeleton = None if is_ort else open_skeleton(request.model, config_entry(request.session_options, FOLDER_KEY))
    if skeleton is None:
        raise LeaveToStock(StockReason.ORT_FORMAT)
    if options_are_in_models() and skeleton.mentions(OPTIONS_IN_MODEL):
        skeleton.close()
        raise LeaveToStock(StockReason.OPTIONS_IN_MODEL)
    return skeleton


def check_fusible(skeleton: Skeleton, request: LoadRequest) -> None:
    """Raise LeaveToStock if an opened model has nothing that could be fused, or the session may fuse nothing."""
    if not _has_fused_operators(skeleton):
        if not skeleton.mentions("DequantizeLinear"):
            _check_written_out(skeleton)
        if not request.may_fuse:
            raise LeaveToStock(StockReason.FUSION_DISABLED)


def glance_at(skeleton: Skeleton) -> None:
    """Look at the bytes of an opened model, which takes a fraction of the time of parsing it.

    Raises:
        NothingToDo: They show that nothing in it can be fused.
    """
    if _has_fused_operators(skeleton):
        return
    with fork_lock:
        from ort_qdq_plugin.model.glance import is_quantized_throughout
        from ort_qdq_plugin.model.held import dequantizes_by_hand, other_forms
        from ort_qdq_plugin.model.outline import Outline
    outline = Outline(skeleton.data)
    if is_quantized_throughout(outline) and not dequantizes_by_hand(outline):
        form = other_forms(outline) if skeleton.mentions("DynamicQuantize") else ""
        raise NothingToDo(StockReason.NOT_FUSIBLE, form or "activations are quantized wherever weights are")


def is_worth_handing_over(skeleton: Skeleton) -> bool:
    """Whether an opened model may have so much in large tensors that it gains by being handed over unchanged."""
    return skeleton.inline_bytes >= UNCHANGED_BYTES or skeleton.may_have_external_data


@contextmanager
def leave_unreadable_to_stock() -> Iterator[None]:
    """While the block runs, errors of opening a model become LeaveToStock: ONNX Runtime reports what is wrong with it."""
    try:
        yield
    except (ModelError, OSError) as error:
        raise LeaveToStock(StockReason.UNREADABLE, str(error)) from error


def _check_written_out(skeleton: Skeleton) -> None:
    """Raise LeaveToStock for a model without DequantizeLinear, unless it does the same by other nodes."""
    if not skeleton.may_hold_small_integers:
        raise LeaveToStock(StockReason.NOT_QUANTIZED)
    with fork_lock:
        from ort_qdq_plugin.model.held import dequantizes_by_hand, other_forms
        from ort_qdq_plugin.model.outline import Outline
    outline = Outline(skeleton.data)
    if not dequantizes_by_hand(outline):
        form = other_forms(outline)
        raise LeaveToStock(StockReason.OTHER_FORM if form else StockReason.NOT_QUANTIZED, form)


def _has_fused_operators(skeleton: Skeleton) -> bool:
    """Whether handing a model over may help it although nothing is fused: it may have fused operators or the extensions'."""
    return any(map(skeleton.mentions, (*LOW_BIT_OPERATORS, EXTENSIONS_DOMAIN)))
