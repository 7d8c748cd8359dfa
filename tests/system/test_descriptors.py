"""What is open: who closes it, when, and when not."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin.system.platform import descriptors, files
from tests.interrupting import interrupted
from tests.support import descriptors as count
from tests.support import settled_descriptors

Opened = descriptors.Opened
OPENED: dict[str, Callable[[Path], Any]] = {
    "read": lambda folder: files.open_to_read(str(folder / "file")),
    "written": lambda folder: files.open_to_write(str(folder / "file")),
    "folder": lambda folder: files.Folder(str(folder)),
    "pipe": lambda _: descriptors.pipe()[0],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path


@pytest.fixture(params=OPENED)
def opened(folder: Path, request: pytest.FixtureRequest) -> Any:
    # In a list, so that a test can drop the last reference.
    return [OPENED[request.param](folder)]


def test_it_is_closed_once(opened: list[Any]) -> None:
    number = opened[0].fileno()
    opened[0].close()
    with pytest.raises(ValueError, match="closed"):
        opened[0].fileno()
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == number
    opened[0].close()
    opened.clear()
    os.close(other)


@pytest.mark.parametrize("end", [lambda opened: opened[0].close(), list.clear])
@pytest.mark.parametrize("reused", [True, False])
def test_what_became_anothers_file_stays_open(opened: list[Any], end: Callable[[list[Any]], None], reused: bool) -> None:
    """The program has closed it by its number, and has opened another file, or will."""
    number = opened[0].fileno()
    if opened[0]._identity == (0, 0):
        pytest.skip("this system does not tell one pipe from another")
    os.close(number)
    if reused:
        assert os.open(os.devnull, os.O_RDONLY) == number
    end(opened)
    if not reused:
        assert os.open(os.devnull, os.O_RDONLY) == number
    os.close(number)


def test_both_ends_of_a_pipe() -> None:
    before = settled_descriptors()
    reader, writer = descriptors.pipe()
    assert count() == before + 2
    assert not os.get_inheritable(reader.fileno())
    os.write(writer.fileno(), b"some")
    del writer
    assert (os.read(reader.fileno(), 10), os.read(reader.fileno(), 10)) == (b"some", b"")
    del reader
    assert count() == before


@pytest.mark.parametrize("kind", OPENED)
def test_an_interrupt_at_any_place_leaves_nothing_open(folder: Path, kind: str) -> None:
    before, number = settled_descriptors(), 1
    while interrupted(number, lambda: OPENED[kind](folder), lambda path: "system" in Path(path).parts):
        assert count() == before, number
        number += 1
    assert number > 5


def test_what_forked_children_close(folder: Path) -> None:
    closed, again, kept = (files.open_to_read(str(folder / "file")) for _ in range(3))
    for file in (closed, again):
        descriptors.close_in_children(file)
    descriptors.leave_to_children(again)
    child = os.fork()
    if not child:
        os._exit((closed.closed, again.closed, kept.closed) != (True, False, False))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [file.read() for file in (closed, again, kept)] == [b"content"] * 3
