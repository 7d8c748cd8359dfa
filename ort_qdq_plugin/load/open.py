"""The first stage of a load: open the model, and see whether there is anything to do. It imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ort_qdq_plugin.errors import LeaveToStock, ModelError, NothingToDo
from ort_qdq_plugin.load.first_look import UNCHANGED_BYTES, dequantizes_nothing, has_fused_operators, why_nothing_is_fusible
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.skeleton import Skeleton, open_skeleton
from ort_qdq_plugin.ort.keys import (
    FOLDER_KEY,
    FORMAT_KEY,
    OPTIONS_IN_MODEL,
    config_entry,
    options_are_in_models,
)
from ort_qdq_plugin.report import StockReason

__all__ = [
    "check_fusible",
    "check_readable",
    "glance_at",
    "is_worth_handing_over",
    "leave_unreadable_to_stock",
    "open_model",
]


def open_model(request: LoadRequest) -> Skeleton:
    """Open the model of a request. The caller closes it.

    Raises:
        LeaveToStock: There is nothing to do for it.
        ModelError, OSError: It cannot be opened.
    """
    if config_entry(request.session_options, FORMAT_KEY) == "ORT":
        raise LeaveToStock(StockReason.ORT_FORMAT, f"{FORMAT_KEY} is ORT")
    is_ort = isinstance(request.model, str) and request.model.endswith(".ort")
    folder = config_entry(request.session_options, FOLDER_KEY)
    skeleton = None if is_ort else open_skeleton(request.model, folder, request.copied)
    if skeleton is None:
        raise LeaveToStock(StockReason.ORT_FORMAT)
    if options_are_in_models() and skeleton.mentions(OPTIONS_IN_MODEL):
        skeleton.close()
        raise LeaveToStock(StockReason.OPTIONS_IN_MODEL)
    return skeleton


def check_fusible(skeleton: Skeleton, request: LoadRequest) -> None:
    """Raise LeaveToStock if an opened model has nothing that could be fused, or the session may fuse nothing."""
    form = dequantizes_nothing(skeleton.data)
    if form is not None:
        raise LeaveToStock(StockReason.OTHER_FORM if form else StockReason.NOT_QUANTIZED, form)
    if not request.may_fuse and not has_fused_operators(skeleton.data):
        raise LeaveToStock(StockReason.FUSION_DISABLED, request.fusion_disabled_by)


def glance_at(skeleton: Skeleton, request: LoadRequest) -> None:
    """Raise NothingToDo if a glance at an opened model shows that nothing in it can be fused."""
    if request.copied is not None and skeleton.data is request.copied.data and not is_worth_handing_over(skeleton):
        return  # the first look has shown nothing
    why = why_nothing_is_fusible(skeleton.data)
    if why is not None:
        raise NothingToDo(StockReason.NOT_FUSIBLE, why)


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


def check_readable(stock: LeaveToStock) -> None:
    """Raise the error that ONNX Runtime was to report, that of opening a model: where no session is to be created."""
    if stock.reason is StockReason.UNREADABLE and stock.__cause__ is not None:
        raise stock.__cause__ from None
