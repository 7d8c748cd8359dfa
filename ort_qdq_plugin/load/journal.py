"""What has been done with a model so far, while it is being loaded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ort_qdq_plugin.report import FusedWeight, Report, UnfusedWeight

__all__ = ["Journal"]


class Journal:
    """What has been done with a model so far, for its report."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._seconds = dict(seconds or {})
        self._report = Report("stock")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def planned(
        self,
        *,
        fused: Iterable[FusedWeight],
        unfused: Iterable[UnfusedWeight],
        packed_bytes: int,
        borrowed_bytes: int,
        cache: str = "",
    ) -> None:
        """Say what is going to be done."""
        self._report = self._report._replace(
            fused=tuple(fused),
            unfused=tuple(unfused),
            packed_bytes=packed_bytes,
            borrowed_bytes=borrowed_bytes,
            cache=cache,
        )

    def finished(self, route: str, passed_through: str | None = None) -> Report:
        """The report: how the model was loaded, and why ONNX Runtime got it as it is, if it did."""
        return self._report._replace(route=route, passed_through=passed_through, seconds=dict(self._seconds))
