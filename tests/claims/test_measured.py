"""What only a measurement shows: the page names the command that measures it."""

import pytest

from tests.claims.pages import text_of

MEASURED = [
    ("docs/troubleshooting.md", "less than a tenth of a second of processor time", "`python -m benchmarks.first_load`"),
    ("docs/troubleshooting.md", "0.3 times the time of level 0 for one row", "(measuring.md#two-accuracy-levels)"),
    ("docs/measuring.md", "Which [accuracy level]", "ort-qdq bench level0.onnx"),
    ("docs/measuring.md", "0.60 times the time (40 % less)", "`python -m benchmarks.cached_load`"),
    (
        "docs/measuring.md",
        "1230 ms and 4.4 GB against 16 ms",
        "`python -m benchmarks.load --layers 4 --variants uint4-nmajor`",
    ),
    ("docs/measuring.md", "861 MB in 200 MB", "`python -m benchmarks.memory_limit`"),
]


@pytest.mark.parametrize(("page", "words", "command"), MEASURED)
def test_pages_name_the_command_that_measures(page: str, words: str, command: str) -> None:
    assert words in text_of(page)
    assert command in text_of(page)
