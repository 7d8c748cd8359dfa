"""The pattern table's rows: all once, the quick ones by every route, from every kind of file, into every kind of buffer."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime as ort
import pytest

from conformance.patterns.catalogue import PATTERNS, quick_patterns
from conformance.patterns.judging import check
from conformance.patterns.pattern import Pattern
from conformance.patterns.running import Form
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.options import Buffer
from tests.support import CPU

EVERY = [pytest.param(pattern, id=pattern.name) for pattern in PATTERNS]
QUICK = [pytest.param(pattern, id=pattern.name) for pattern in quick_patterns()]


def route(wanted: str, buffer: Buffer) -> Callable[[str | bytes, ort.SessionOptions], ort.InferenceSession]:
    """A way to make a session; fused models must have gone that way."""

    def make(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        # The table saves the optimized graph to look at it, which is not done by path.
        taken = "borrowed" if options.optimized_model_filepath else wanted
        providers: list[str] | None = CPU
        if taken == "by path":
            options.add_provider("CPUExecutionProvider", {})
            providers = None
        session = create_session(model, options, providers, options=Options(buffer=buffer))
        report = report_of(session)
        assert report is not None
        assert report.route == (taken if report.fused else "stock"), report.stock_message
        return session

    return make


def run(pattern: Pattern, wanted: str, buffer: Buffer, form: Form) -> None:
    row = check(pattern, make_session=route(wanted, buffer), form=form)
    assert row.passed, "; ".join(row.problems)


@pytest.mark.parametrize("pattern", EVERY)
def test_borrowed_from_bytes(pattern: Pattern) -> None:
    run(pattern, "borrowed", "memory", "bytes")


@pytest.mark.parametrize("pattern", QUICK)
def test_borrowed_from_a_file(pattern: Pattern) -> None:
    run(pattern, "borrowed", "file", "file")


@pytest.mark.parametrize("pattern", QUICK)
def test_borrowed_from_external_data(pattern: Pattern) -> None:
    run(pattern, "borrowed", "file", "external")


@pytest.mark.parametrize("pattern", QUICK)
def test_by_path_from_bytes(pattern: Pattern) -> None:
    run(pattern, "by path", "auto", "bytes")


@pytest.mark.parametrize("pattern", QUICK)
def test_by_path_from_external_data(pattern: Pattern) -> None:
    run(pattern, "by path", "file", "external")


@pytest.mark.parametrize("pattern", QUICK)
def test_by_path_from_a_file(pattern: Pattern) -> None:
    run(pattern, "by path", "file", "file")
