"""The command line of checks that are rows of a table."""

import argparse
import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["chosen", "parser"]


def parser(description: str | None, quick: str = "") -> argparse.ArgumentParser:
    """A command line with `--only`, `--markdown` and, where it is said what that does, `--quick`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", metavar="GLOB", default="*", help="only those with such names")
    made.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there, too")
    if quick:
        made.add_argument("--quick", action="store_true", help=quick)
    return made


def chosen(checks: Iterable[Any], args: argparse.Namespace) -> list[Any]:
    """The checks with a name that is asked for."""
    return [check for check in checks if fnmatch.fnmatch(check.name, args.only)]
