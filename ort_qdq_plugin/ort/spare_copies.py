"""All private copies of the caller's SessionOptions that a load needs, made at once (`copies.private_options`).

A throw-away session makes any number of copies. It has a pool of threads, and ONNX Runtime's telemetry counts it.
"""

from __future__ import annotations

import _thread
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["copied_once", "spare"]


class _Spare(_thread._local):
    """The options of the load that this thread carries out, and copies of them that are not used yet."""

    session_options: Any = None
    copies: list[Any]


spare = _Spare()


@contextmanager
def copied_once(session_options: Any | None) -> Iterator[None]:
    """While the block runs, copies that this thread makes of these options are as they were when it made the first one."""
    before = spare.session_options, getattr(spare, "copies", [])
    spare.session_options, spare.copies = session_options, []
    try:
        yield
    finally:
        spare.session_options, spare.copies = before
