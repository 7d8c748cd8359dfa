"""Whether the installed ONNX Runtime can be used, and whether it uses memory of ours in place.

Of the releases that were tried, a table knows it (`model.releases`), at no cost. A later one is tried out (`trial`).
"""

from __future__ import annotations

import functools

import onnxruntime

from ort_qdq_plugin import log
from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.model.releases import LENT_FILES, NEWEST, OLDEST, has, installed, name_of
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["check_release", "lends_files"]


def check_release() -> None:
    """Raise LeaveToStock if the installed ONNX Runtime cannot be used. The first time in a process, it is a warning too."""
    if OLDEST <= installed() <= NEWEST:
        return
    problem = _problem_of(onnxruntime.__version__)
    if problem:
        raise LeaveToStock(StockReason.RELEASE, problem)


def lends_files() -> bool:
    """Whether files in memory are used in place (`buffers.borrow`), and not copied."""
    return has(LENT_FILES) if installed() <= NEWEST else _lends_when_tried(onnxruntime.__version__) is True


@functools.cache
def _problem_of(version: str) -> str:
    """Why the installed ONNX Runtime, of that version, cannot be used; "" if it can."""
    if installed() < OLDEST:
        with fork_lock:
            from ort_qdq_plugin.ort.installed import too_old
        oldest = name_of(OLDEST)
        problem = too_old() or f"onnxruntime {version} is older than {oldest}: pip install --upgrade 'onnxruntime>={oldest}'"
    else:
        found = _lends_when_tried(version)
        if not isinstance(found, str):
            return ""
        problem = f"onnxruntime {version} is newer than {name_of(NEWEST)}, and {found}: look for a newer ort-qdq-plugin"
    log.warning("models are loaded with stock ONNX Runtime, without ort-qdq-plugin: %s", problem)
    return problem


@functools.cache
def _lends_when_tried(version: str) -> bool | str:
    """Whether that version lends files in memory; or why it cannot be used."""
    del version  # the installed one, which tests change
    with fork_lock:
        from ort_qdq_plugin.ort.trial import lends_files_when_tried, problem_when_asked
    try:
        lends = lends_files_when_tried()
        return problem_when_asked() or ("a fused product has other results" if lends is None else lends)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
