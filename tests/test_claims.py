"""The registry of checked statements as a whole. Each is checked by a test in `claims/`."""

import importlib
from collections import Counter

from tests.claims.registry import CLAIMS
from tests.support import ROOT


def test_each_statement_stands_in_the_registry_once() -> None:
    for path in (ROOT / "tests" / "claims").glob("test_*.py"):
        importlib.import_module(f"tests.claims.{path.stem}")
    assert [words for words, number in Counter((claim.page, claim.words) for claim in CLAIMS).items() if number > 1] == []
    assert len(CLAIMS) > 300
