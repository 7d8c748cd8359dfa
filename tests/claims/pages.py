"""Reading the pages: their text, tables and code."""

import re
import textwrap
from importlib.util import find_spec
from itertools import takewhile
from typing import NamedTuple

from tests.support import ROOT

__all__ = ["PAGES", "Block", "all_blocks", "blocks", "can_be_run", "rows_below", "text_of"]

PAGES = [
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]  # fmt: skip


class Block(NamedTuple):
    """A block of code, or of what is printed."""

    page: str
    language: str
    code: str

    @property
    def name(self) -> str:
        """By which it is known: the page, and its first line."""
        return f"{self.page}: {self.code.partition(chr(10))[0].strip()}"


def text_of(page: str) -> str:
    """A page, without line breaks."""
    return " ".join((ROOT / page).read_text("utf-8").split())


def rows_below(page: str, heading: str) -> list[list[str]]:
    """The cells of a table, from the line behind its heading on."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    rows = takewhile(lambda line: line.startswith("|"), lines[lines.index(heading) + 2 :])
    return [row.strip("| ").split(" | ") for row in rows]


def all_blocks(page: str) -> list[Block]:
    """All that is between ``` and ```, in lists too."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, language, textwrap.dedent(code)) for _, language, code in found]


def blocks(page: str, language: str) -> list[str]:
    """The code in that language."""
    return [block.code for block in all_blocks(page) if block.language == language]


def can_be_run(module: str) -> bool:
    """Whether it is a module, or a package that can be run."""
    is_folder = (ROOT / module.replace(".", "/")).is_dir()
    return find_spec(f"{module}.__main__" if is_folder else module) is not None
