"""What the commands of a checkout take, without carrying them out."""

import argparse
import importlib
import logging
import sys
from typing import Any

import pytest

__all__ = ["default_of", "parser_of"]


class _Parsed(Exception):
    """The parser has all that it takes."""


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of ``python -m <module>``."""
    parsers: list[argparse.ArgumentParser] = []
    level = logging.getLogger().level  # which some set before they parse

    def asked(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parsers.append(parser)
        raise _Parsed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", asked)
        patched.setattr(argparse.ArgumentParser, "parse_known_args", asked)
        patched.setattr(sys, "argv", [module])
        imported = importlib.import_module(module)
        if hasattr(imported, "__path__"):
            imported = importlib.import_module(f"{module}.__main__")
        with pytest.raises(_Parsed):
            (getattr(imported, "main", None) or imported._main)()
    logging.getLogger().setLevel(level)
    return parsers[0]


def default_of(module: str, option: str) -> Any:
    """The default of an option of ``python -m <module>``, by the name that it has there."""
    (action,) = [action for action in parser_of(module)._actions if option in action.option_strings]
    return action.default
