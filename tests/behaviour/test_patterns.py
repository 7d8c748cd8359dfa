"""The pattern table's rows: all once, the quick ones by every route, from every kind of file, into every kind of buffer.

The long tests try all of them; the slow ones one other way for each of the quick rows, in turns.
"""

from collections.abc import Iterator

import onnxruntime as ort
import pytest

from conformance.patterns.catalogue import PATTERNS, quick_patterns
from conformance.patterns.judging import Form, check
from conformance.patterns.pattern import Pattern
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.options import Buffer
from tests.support import CPU, ROUTE, ROUTE_IN_MEMORY, made_report

WAYS: list[tuple[str, Buffer, Form]] = [
    ("borrowed", "memory", "bytes"), ("borrowed", "file", "file"), ("borrowed", "file", "external"),
    ("by path", "auto", "bytes"), ("by path", "file", "external"), ("by path", "file", "file"),
]  # fmt: skip


def cases() -> Iterator[object]:
    for number, way in enumerate(WAYS):
        for turn, pattern in enumerate(quick_patterns() if number else PATTERNS):
            marks = [pytest.mark.slow] if number == 0 or number == 1 + turn % (len(WAYS) - 1) else [pytest.mark.long]
            name = f"{way[0]} from {way[2]} into {way[1]}-{pattern.name}"
            yield pytest.param(pattern, *way, id=name, marks=[] if number == 0 and pattern.quick else marks)


@pytest.mark.parametrize(("pattern", "wanted", "buffer", "form"), list(cases()))
def test_a_pattern(pattern: Pattern, wanted: str, buffer: Buffer, form: Form) -> None:
    def make(model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        # The table saves the optimized graph to look at it, which is not done by path.
        taken = "borrowed" if options.optimized_model_filepath else wanted
        if taken == "by path":
            options.add_provider("CPUExecutionProvider", {})
        session = create_session(model, options, None if taken == "by path" else CPU, options=Options(buffer=buffer))
        report = made_report(session)
        if taken == "borrowed":
            taken = ROUTE_IN_MEMORY if options.optimized_model_filepath or buffer == "memory" else ROUTE
        is_helped = report.fused or any(entry.bytes_added for entry in report.unfused)
        assert report.route == (taken if is_helped else "stock"), report.stock_message
        return session

    row = check(pattern, make_session=make, form=form)
    assert not row.problems, "; ".join(row.problems)
