"""The docstrings of packages that list what is in them."""

import re

import conformance
import conformance.drawing
from tests.claims.pages import can_be_run
from tests.claims.registry import claim
from tests.support import (
    ROOT,
)


@claim("conformance/__init__.py", "Each of these is one subject, and one command")
def test_commands_exist() -> None:
    names = re.findall(r"^- `(\w+)`", conformance.__doc__ or "", re.MULTILINE)
    assert names
    assert [name for name in names if not can_be_run(f"conformance.{name}")] == []


@claim("conformance/drawing/__init__.py", "Models, drawn node by node")
def test_modules_are_those() -> None:
    named = re.findall(r"^- `(\w+)`", conformance.drawing.__doc__ or "", re.MULTILINE)
    modules = [path.stem for path in (ROOT / "conformance/drawing").glob("*.py")]
    assert sorted(named) == sorted({*modules} - {"__init__"})
