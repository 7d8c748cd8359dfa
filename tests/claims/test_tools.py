"""tools.md: its rows are those of the check."""

import fnmatch
import re

from conformance.tools.expected import EXPECTED
from ort_qdq_plugin import Reason, StockReason
from tests.claims.pages import rows_below
from tests.claims.registry import claim


@claim("docs/tools.md", "Each row is checked by")
def test_tools_are_those() -> None:
    """The page's rows are those of the check, each once; what is fused, and the reasons, are the check's."""
    verdicts = {f"{tool}: {name}": verdict for tool, rows in EXPECTED.items() for name, verdict in rows.items()}
    shown: list[str] = []
    for *_, becomes, globs in rows_below("docs/tools.md", "| tool and setting | writes | what becomes of it | rows |"):
        names = [name for glob in re.findall("`(.+?)`", globs) for name in fnmatch.filter(verdicts, glob)]
        told = set(re.findall(r"\w+", " ".join(verdicts[name] for name in names)))
        assert ("fused" in told) == ("fused" in becomes.lower()), globs
        assert {word for word in told if word.isupper()} == set(re.findall("`([A-Z_]+)`", becomes)), globs
        assert all(hasattr(Reason, word) or hasattr(StockReason, word) for word in told if word.isupper())
        shown += names
    assert sorted(shown) == sorted(verdicts)
