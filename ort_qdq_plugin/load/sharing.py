"""Whether a new session really uses the pre-packed weights of the cache.

If they do not fit the processor, ONNX Runtime pre-packs again, into memory of its own, without a message. If they do, it has
compared them with what it made, byte for byte, and thrown that away. So two things tell, and each of them alone can deceive:
memory of this process's own also grows by what other threads do meanwhile, and pages of a file that were read may be gone
again where memory is short.
"""

from __future__ import annotations

import os

from ort_qdq_plugin import log
from ort_qdq_plugin.load.prepared import PreparedModel
from ort_qdq_plugin.model.releases import READ_PREPACKED, has
from ort_qdq_plugin.ort.prepacked import blobs_in
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import NamedTuple, replace

__all__ = ["OwnMemory", "check_shared"]

# A session takes some memory of its own, among which fewer bytes of pre-packed weights cannot be measured.
_MEASURABLE_BYTES = 4 << 20


class OwnMemory(NamedTuple):
    """Memory of this process's own, in bytes: 0 where the system does not tell."""

    heap: int  # in use: what was freed and is still in the heap does not count
    anonymous: int

    @classmethod
    def now(cls) -> OwnMemory:
        return cls(host.heap_bytes(), host.anonymous_bytes())


def check_shared(prepared: PreparedModel, before: OwnMemory) -> Report:
    """The report of a session that was just created with pre-packed weights; `shared_bytes` is 0 if it does not use them.

    Args:
        prepared: What the session was created from.
        before: Memory before that.
    """
    report, now = prepared.report, OwnMemory.now()
    few = report.shared_bytes // 2
    if report.shared_bytes < _MEASURABLE_BYTES or max(now.heap - before.heap, now.anonymous - before.anonymous) < few:
        return report
    read = _read_bytes(prepared)
    # Where that is not known, the heap alone has to tell: it is not deceived by what was freed.
    if (read is None and now.heap and now.heap - before.heap < few) or (read is not None and read >= few):
        return report
    log.warning("weights are not shared between processes: ONNX Runtime does not use the pre-packed weights of the cache")
    return replace(report, shared_bytes=0)


def _read_bytes(prepared: PreparedModel) -> int | None:
    """How many bytes of the pre-packed weights in the files of the cache this process has read. None: that tells nothing."""
    if not has(READ_PREPACKED):
        return None
    assert prepared.entry is not None
    assert isinstance(prepared.model, bytes)
    read = 0
    for location, blobs in blobs_in(prepared.model).items():
        path = os.path.join(prepared.entry.path, location)
        of_file = host.resident_bytes(path, [(blob.offset, blob.nbytes) for blob in blobs])
        if of_file is None:
            return None
        read += of_file
    return read
