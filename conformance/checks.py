"""The command line of checks that are rows of a table."""

import argparse
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from conformance.markdown import table

__all__ = ["parser", "run"]

_T = TypeVar("_T")


def parser(description: str | None, quick: str = "") -> argparse.ArgumentParser:
    """A command line with `--only`, `--markdown` and, where it is said what that does, `--quick`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", metavar="GLOB", default="*", help="only those with such names")
    made.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there, too")
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    return made


def run(
    checks: Mapping[str, _T],
    row_of: Callable[[_T], tuple[Sequence[str], Sequence[str]]],
    columns: Sequence[str],
    args: argparse.Namespace,
    title: str,
) -> int:
    """Print the rows of the checks that are asked for by their names, and write the table; 1 if one of them fails.

    `row_of` makes a check: it gives its row, and what is wrong.
    """
    rows, failed = [], 0
    for name in fnmatch.filter(checks, args.only):
        row, problems = row_of(checks[name])
        rows.append(row)
        failed += bool(problems)
        print(" | ".join(row), flush=True)
    closing = f"{len(rows) - failed} passed, {failed} failed"
    print(closing)
    if args.markdown:
        lines = [title, "", *table(columns, rows), "", closing, ""]
        args.markdown.write_text("\n".join(lines), encoding="utf-8")
    return int(failed > 0)
