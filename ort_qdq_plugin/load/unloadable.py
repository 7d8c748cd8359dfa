"""What is wrong with a model that is left to ONNX Runtime, and that ONNX Runtime cannot load either."""

from __future__ import annotations

from contextlib import closing, suppress

from ort_qdq_plugin.errors import LeaveToStock, ModelError
from ort_qdq_plugin.load.open import open_model
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["check_complete", "what_is_wrong"]


def check_complete(request: LoadRequest) -> None:
    """Raise an error if a model cannot be opened, or its external data is not all there.

    Raises:
        ModelError, OSError: That is so.
    """
    with suppress(LeaveToStock), closing(open_model(request)) as skeleton:
        if skeleton.may_have_external_data:
            with fork_lock:
                from ort_qdq_plugin.model.external import check_external_data
            check_external_data(skeleton)


def what_is_wrong(request: LoadRequest) -> str:
    """The same in words, after an error of ONNX Runtime; "" if that is not why, or ONNX Runtime says it.

    Its errors (1.32.0) say of all that is no model that protobuf cannot parse it, and do not name a file that is too short.
    """
    try:
        check_complete(request)
    except ModelError as error:
        return str(error)
    except Exception:
        # Whatever it is: the caller has an error to raise.
        return ""
    return ""
