"""The command line: finds the command, runs it, and says in one line what is wrong."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn, Protocol

import ort_qdq_plugin
from ort_qdq_plugin.cli import bench, cache, demo, export, inspect, prepare, run, warm
from ort_qdq_plugin.cli.console import UsageError, complain, missing
from ort_qdq_plugin.errors import QdqPluginError, error_text
from ort_qdq_plugin.ort.installed import explained, several_builds, too_old
from ort_qdq_plugin.system.environment import NO_TELEMETRY

__all__ = ["main"]

_BAD_INPUT = 2
_SIGNAL = 128  # what shells add to the number of the signal that ended a program
_PIPE = 13  # the number of SIGPIPE, which some systems do not know
_EPILOG = "Exit codes: 0 good, 1 a finding, 2 bad usage or unreadable input."
_SHELLS = ("bash", "zsh", "tcsh")
# Arguments that are paths.
_POSITIONAL = ("model", "out")
_PATHS = (*_POSITIONAL, "plot", "dir")


class _Command(Protocol):
    """A module of this folder. Commands import what they need when they run."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, given: argparse.Namespace) -> int: ...


_COMMANDS: Mapping[str, _Command] = {
    "inspect": inspect,
    "bench": bench,
    "run": run,
    "export": export,
    "warm": warm,
    "prepare": prepare,
    "cache": cache,
    "demo": demo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command, by default that of the process's own arguments. Returns the exit code."""
    _open_what_is_closed()
    # A name that cannot be written in the output's encoding, as pipes have one on Windows, ends no command.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    given = _parser().parse_args(argv)
    for name in _PATHS:
        path = getattr(given, name, None)
        if path == "":
            argument = name if name in _POSITIONAL else f"--{name}"
            complain(f"ort-qdq {given.command}: {argument} is empty, must be a path (an unset variable?)")
            return _BAD_INPUT
        # As in `--dir=~/cache`, which shells leave as it is.
        if path:
            setattr(given, name, os.path.expanduser(path))
    if given.command != "run":
        # Before anything imports ONNX Runtime. What is run is the user's own program.
        os.environ.setdefault(NO_TELEMETRY, "1")
        if several := several_builds():
            complain(f"ort-qdq {given.command}: {several}")
        if given.command != "cache" and (old := too_old()):
            complain(f"ort-qdq {given.command}: {old}")
            return _BAD_INPUT
    # Ends like an interrupt: temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_SIGNAL + signal.SIGTERM))
    try:
        return int(_COMMANDS[given.command].run(given))
    except KeyboardInterrupt:
        return _SIGNAL + signal.SIGINT
    except BrokenPipeError:
        # Whoever read it has seen enough. The interpreter must not try once more at its end.
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return _SIGNAL + _PIPE
    except (ImportError, AttributeError) as error:
        problem = explained(error)
        if problem is None:
            raise
        complain(f"ort-qdq {given.command}: {problem}")
    except (OSError, UsageError, QdqPluginError) as error:
        _complain(given, error_text(error))
    return _BAD_INPUT


def _open_what_is_closed() -> None:
    """Have what is written go nowhere where a process was started without standard output or error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for as long as the process lives


def _complain(given: argparse.Namespace, fault: str) -> None:
    """One line on stderr, which names the model that it is about."""
    model = getattr(given, "model", None)
    named = fault if model is None or model in fault else f"{model}: {fault}"
    complain(" ".join(f"ort-qdq {given.command}: {named}".split()))


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        complain(f"{self.prog}: {message} (see {self.prog} --help)")
        self.exit(_BAD_INPUT)


class _PrintCompletion(argparse.Action):
    """Prints what a shell has to read to complete commands, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, _given: object, shell: object, _option: object = None) -> NoReturn:
        if problem := missing("shtab", "cli"):
            parser.error(str(problem))
        import shtab

        sys.stdout.write(f"{shtab.complete(_parser(shtab.FILE), str(shell))}\n")
        parser.exit(0)


def _parser(files: object = None) -> argparse.ArgumentParser:
    """The parser of all commands; `files` tells shells how to complete paths."""
    parser = _Parser(prog="ort-qdq", description="Quantized ONNX models in ONNX Runtime, seen and measured.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"ort-qdq {ort_qdq_plugin.__version__}")
    parser.add_argument(
        "--print-completion", choices=_SHELLS, action=_PrintCompletion, help="print what completes commands in this shell"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        described = f"{command.HELP[0].upper()}{command.HELP[1:]}."
        own = commands.add_parser(name, help=command.HELP, description=described, epilog=f"Example: {command.EXAMPLE}")
        command.add_arguments(own)
        for action in own._actions:
            if files is not None and action.dest in _PATHS:
                action.complete = files  # type: ignore[attr-defined]  # an attribute of shtab's
    return parser
