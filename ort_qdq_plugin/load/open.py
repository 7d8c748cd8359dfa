"""The first stage of a load: open the model, and see whether there is anything to do. It imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ort_qdq_plugin.errors import LeaveToStock, ModelError, NothingToDo
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.glance import is_quantized_throughout
from ort_qdq_plugin.model.skeleton import Skeleton, open_skeleton
from ort_qdq_plugin.ort.extensions import EXTENSIONS_DOMAIN
from ort_qdq_plugin.ort.keys import FOLDER_KEY, FORMAT_KEY, OPTIONS_IN_MODEL, config_entry, options_are_in_models

__all__ = ["glance_at", "leave_unreadable_to_stock", "open_model"]


def open_model(request: LoadRequest) -> Skeleton:
    """Open the model that is asked for. The caller closes it.

    Raises:
        LeaveToStock: There is nothing to do for it.
        ModelError, OSError: It cannot be opened.
    """
    if config_entry(request.session_options, FORMAT_KEY) == "ORT":
        raise LeaveToStock("the model is to be read in ORT format")
    if isinstance(request.model, str) and request.model.endswith(".ort"):
        raise LeaveToStock("the model is in ORT format")
    skeleton = open_skeleton(request.model, config_entry(request.session_options, FOLDER_KEY))
    if skeleton is None:
        raise LeaveToStock("the model is in ORT format")
    try:
        if not _has_work(skeleton, request):
            raise LeaveToStock("nothing in it is quantized")
        if options_are_in_models() and skeleton.mentions(OPTIONS_IN_MODEL):
            raise LeaveToStock("its session options are in the model")
    except BaseException:
        skeleton.close()
        raise
    return skeleton


def glance_at(skeleton: Skeleton) -> None:
    """Look cheaply at an opened model, which may spare it all that follows.

    Raises:
        NothingToDo: Nothing in it can be fused.
    """
    if skeleton.mentions("MatMulNBits") or skeleton.mentions(EXTENSIONS_DOMAIN):
        return
    if is_quantized_throughout(skeleton.data):
        raise NothingToDo("nothing in it can be fused: activations are quantized wherever weights are")


@contextmanager
def leave_unreadable_to_stock() -> Iterator[None]:
    """While the block runs, errors of opening a model become LeaveToStock: they are ONNX Runtime's to complain about."""
    try:
        yield
    except (ModelError, OSError) as error:
        raise LeaveToStock(str(error)) from error


def _has_work(skeleton: Skeleton, request: LoadRequest) -> bool:
    fuses = request.may_fuse and skeleton.mentions("DequantizeLinear")
    return fuses or skeleton.mentions("MatMulNBits") or skeleton.mentions(EXTENSIONS_DOMAIN)
