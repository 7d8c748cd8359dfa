"""The line on the terminal: what it says, how wide it is, and that nothing is left of it, whatever ends a load."""

import io
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, groupby
from pathlib import Path

import pytest

from ort_qdq_plugin.load import bar as module
from ort_qdq_plugin.load.bar import bar
from ort_qdq_plugin.load.journal import tell_stage
from tests.interrupting import at_place
from tests.lacking import fcntl, pty, termios

COLUMNS, PATIENCE = 40, 10.0


class Terminal:
    """A terminal in the place of standard error, and what it was told so far."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.file = os.fdopen(theirs, "w")
        self._told = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.resize(COLUMNS)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.file.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def _read(self) -> None:
        # Reading fails once nobody has the other end any more.
        try:
            while chunk := os.read(self._ours, 1 << 16):
                self._told += chunk
        except OSError:
            pass

    def wait(self, title: bytes = b"") -> None:
        """Until what can be said now was drawn: with the second line from now on, and a line of this title."""
        before, end = self._told.count(b"\r"), time.monotonic() + PATIENCE
        while (self._told.count(b"\r") < before + 2 or title not in self._told) and time.monotonic() < end:
            time.sleep(0.001)

    def lines(self) -> list[str]:
        """What was shown, one after the other; it is no terminal any more."""
        self.file.close()
        self._reader.join()
        os.close(self._ours)
        return self._told.decode("ascii").split("\r")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_PERIOD_SECONDS", 0.002)
    made = Terminal()
    # Pytest puts its own object in the place of standard error before each test.
    monkeypatch.setattr(module, "_terminal", made.file.fileno)
    before = threading.active_count()
    yield made
    assert module._lines == []
    assert threading.active_count() <= before
    if not made.file.closed:
        made.lines()


def seen(lines: list[str]) -> list[str]:
    """The different lines, in their order. At the end the last one is erased."""
    assert (lines[0], lines[-1], set(lines[-2])) == ("", "", {" "})
    return list(dict.fromkeys(line.rstrip() for line in lines[1:-2]))


def test_what_it_says(terminal: Terminal) -> None:
    terminal.resize(80)
    with bar("model.onnx") as line:
        tell_stage(line, "pack")
        terminal.wait()
        assert line is not None
        line(450_000, 1_000_000)
        terminal.wait()
        line(3, 2)
        terminal.wait()
        tell_stage(line, "create session")
        terminal.wait()
        tell_stage(line, "something else")
        terminal.wait()
    assert seen(terminal.lines()) == [
        "model.onnx: packing, 0 s",
        "model.onnx: packing [####------]  45% of 1.0 MB, 0 s",
        "model.onnx: packing [##########] 100% of 2 B, 0 s",
        "model.onnx: creating the session, 0 s",
        "model.onnx: something else, 0 s",
    ]


def test_numbers_of_things(terminal: Terminal) -> None:
    with bar("measuring", of_bytes=False) as line:
        assert line is not None
        line(7, 20)
        terminal.wait()
    assert seen(terminal.lines()) == ["measuring: [####------] 7 of 20, 0 s"]


@pytest.mark.parametrize("columns", [8, 23, 40, 200])
def test_it_is_never_wider_than_the_terminal(terminal: Terminal, columns: int) -> None:
    """Nor has it anything that steers a terminal, or takes two columns."""
    terminal.resize(columns)
    with bar("\x1b[2J\u6f22\u5b57 of a name that is longer than many a terminal\n.onnx") as line:
        assert line is not None
        tell_stage(line, "pack")
        line(1, 2)
        terminal.wait()
    lines = terminal.lines()
    assert max(map(len, lines)) == min(columns - 1, len(seen(lines)[0]))
    assert all(line.isprintable() for line in lines)
    if columns == 200:
        assert seen(lines)[0].startswith(
            r"\x1b[2J\u6f22\u5b57 of a name that is longer than many a terminal\n.onnx: packing ["
        )


def test_a_terminal_of_unknown_width(terminal: Terminal) -> None:
    terminal.resize(0)
    with bar("m" * 100):
        terminal.wait()
    assert len(seen(terminal.lines())[0]) == 79


def test_nothing_is_shown_of_what_takes_no_time(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60.0)
    with bar("short"):
        time.sleep(0.05)
    assert terminal.lines() == [""]


@pytest.mark.parametrize("kind", ["none", "an object", "a file", "a closed file"])
def test_nothing_is_shown_where_nobody_looks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = (tmp_path / "log").open("w")
    if kind == "a closed file":
        file.close()
    stream = {"none": None, "an object": io.StringIO()}.get(kind, file)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.0)
    with bar("model") as line:
        assert line is None
        tell_stage(line, "pack")
    file.close()


def test_of_several_loads_the_first_has_the_line(terminal: Terminal) -> None:
    first, second = bar("first"), bar("second")
    with ExitStack() as of_second:
        with first:
            terminal.wait()
            of_second.enter_context(second)
            terminal.wait()
        terminal.wait(b"second")
    titles = [line.partition(":")[0].rstrip() for line in terminal.lines()]
    assert [title for title, _ in groupby(titles)] == ["", "first", "", "second", ""]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_gone_whatever_ends_the_load(terminal: Terminal, error: type[BaseException]) -> None:
    def fail() -> None:
        with bar("model"):
            terminal.wait()
            raise error

    with pytest.raises(error):
        fail()
    assert seen(terminal.lines()) == ["model: 0 s"]


def test_an_interrupt_at_any_place_leaves_nothing(terminal: Terminal) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with bar("model") as line:
            tell_stage(line, "pack")
            time.sleep(0.005)

    for number in count(1):
        interrupted = False
        try:
            reached = at_place(number, work, lambda path: path.endswith("bar.py"), interrupt)
        except KeyboardInterrupt:
            reached = interrupted = True
        deadline = time.monotonic() + 5
        while module._lines and time.monotonic() < deadline:
            time.sleep(0.001)
        assert module._lines == []
        if not reached:
            break
        assert interrupted
    assert number > 10
    lines = terminal.lines()
    # Every line that was drawn was erased by the next one, or with spaces.
    assert set(lines[-1]) <= {" "}


def test_a_forked_child_has_no_line(terminal: Terminal) -> None:
    with bar("parent") as line:
        tell_stage(line, "pack")
        terminal.wait()
        child = os.fork()
        if not child:
            # Without the parent's, the child's own is drawn.
            with bar("child"):
                time.sleep(0.3)
            line.close()  # type: ignore[union-attr]
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    titles = {line.partition(":")[0].rstrip() for line in terminal.lines()}
    assert titles == {"", "parent", "child"}
