"""What this package keeps for a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ort_qdq_plugin.load.first_look import Nothing
from ort_qdq_plugin.ort import hook
from ort_qdq_plugin.system.forks import fork_lock

if TYPE_CHECKING:
    from ort_qdq_plugin.load.prepared import PreparedModel
    from ort_qdq_plugin.load.request import LoadRequest
    from ort_qdq_plugin.model.wire import Copied
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.report import Report

__all__ = ["SessionState"]


class SessionState:
    """What this package keeps for one session.

    Attributes:
        given: The options of this package, if there were any.
        prepared: For `set_providers`, which creates the native session anew. None: prepared anew too, or left to stock ONNX
            Runtime.
        copied: What a first look has read of the model, for the load that follows it.
        unmatched: Makes the request, if a glance showed that nothing can be fused. The report has no `unfused` weights then.
    """

    def __init__(self, options: Options | None) -> None:
        self.given = options
        self._done: Report | Nothing | None = None
        self.prepared: PreparedModel | None = None
        self.copied: Copied | None = None
        self.unmatched: Callable[[], LoadRequest] | None = None

    @property
    def options(self) -> Options:
        """The options of this package."""
        if self.given is None:
            with fork_lock:
                from ort_qdq_plugin.options import Options
            self.given = Options()
        return self.given

    @property
    def report(self) -> Report:
        """What was done. Made when somebody asks, where there was nothing to do."""
        with fork_lock:
            from ort_qdq_plugin.report import Report, StockReason
        done = self._done
        if isinstance(done, Nothing):
            done = self._done = Report("stock", StockReason[done.reason], done.detail, seconds={"open": done.seconds})
        return done or Report("stock")

    @report.setter
    def report(self, report: Report) -> None:
        self._done = report

    def found_nothing(self, nothing: Nothing, session: Any) -> None:
        """Keep that there is nothing to do for a session's model."""
        self._done, self.prepared = nothing, None
        self.unmatched = self.request_of(session) if nothing.is_listed else None

    def request_of(self, session: Any) -> Callable[[], LoadRequest]:
        """What makes the request of a session's model."""
        model, session_options = hook.constructor_arguments(session)

        def make() -> LoadRequest:
            with fork_lock:
                from ort_qdq_plugin.load.request import LoadRequest
            return LoadRequest(model, session_options, self.options)

        return make
