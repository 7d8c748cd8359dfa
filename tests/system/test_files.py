"""Files: how they are opened and named, what is read from them and written, and whose they are."""

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from ort_qdq_plugin.system.platform import files
from tests.interrupting import interrupted
from tests.lacking import grp, pwd, resource
from tests.support import BOTH_WAYS_TO_NO_NAME, descriptors, refuse, settled_descriptors

OTHER_USER = 12345
CHUNK = 1 << 20
CONTENT = bytes(range(256)) * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(CONTENT)
    return path


def made(path: Path, kind: str) -> Path:
    """Something that is no regular file."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "folder" / "file")
    return path


# ---- opening


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
@pytest.mark.parametrize("inside", [False, True])
def test_only_regular_files_are_read(path: Path, tmp_path: Path, kind: str, inside: bool) -> None:
    made(tmp_path / "other", kind)
    before = settled_descriptors()
    with closing(files.Folder(str(tmp_path))) as folder:
        with pytest.raises(files.NotRegularError, match="other"):
            files.open_to_read("other" if inside else str(tmp_path / "other"), folder=folder if inside else None)
        with files.open_to_read("folder/file", folder=folder) as file:
            assert file.readall() == CONTENT
    assert descriptors() == before


def test_a_link_is_followed_where_it_may_be(path: Path, tmp_path: Path) -> None:
    with files.open_to_read(str(made(tmp_path / "other", "link")), follow_link=True) as file:
        assert file.readall() == CONTENT
        assert not os.get_inheritable(file.fileno())


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
@pytest.mark.needs("os.open")
def test_what_became_something_else_meanwhile_is_not_read(
    path: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is looked at before it is opened: it may lead elsewhere by then."""
    other = made(tmp_path / "other", kind)
    before, opened = settled_descriptors(), os.open
    monkeypatch.setattr(os, "open", lambda _, flags, *__, **___: opened(other, flags))
    with pytest.raises(OSError, match={"link": "symbolic", "folder": "directory"}.get(kind, "regular")) as caught:
        files.open_to_read(str(path))
    # While the exception, and what it refers to, is still there.
    assert descriptors() == before
    del caught


@pytest.mark.needs("folders that are open")
def test_what_nothing_refers_to_is_closed(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    before = settled_descriptors()
    opened = files.open_to_read(str(path)), files.Folder(str(path.parent))
    assert descriptors() == before + 2
    del opened
    assert descriptors() == before
    assert not list(recwarn)


@pytest.mark.needs("free names")
def test_a_folder_is_the_one_that_was_opened(path: Path, tmp_path: Path) -> None:
    folder = files.Folder(str(path.parent))
    path.parent.rename(tmp_path / "renamed")
    path.parent.mkdir()
    (tmp_path / "renamed" / "link").symlink_to("nowhere")
    assert sorted(folder.names()) == ["file", "link"]
    assert os.path.samestat(folder.status(), (tmp_path / "renamed").stat())
    assert os.path.samestat(folder.status("link"), (tmp_path / "renamed" / "link").lstat())
    assert not os.get_inheritable(folder.fileno())
    folder.close()
    other = os.open(os.devnull, os.O_RDONLY)
    folder.close()
    del folder
    os.close(other)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder(path: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "link").symlink_to(path.parent)
    with pytest.raises(NotADirectoryError):
        files.Folder(str(path if kind == "file" else tmp_path / "link"))


def test_a_file_to_write_is_made_where_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with pytest.raises(FileNotFoundError):
        files.open_to_write(str(path))
    for _ in range(2):
        with files.open_to_write(str(path), create=True) as file:
            file.write(b"one")
    with files.open_to_write(str(path), append=True) as file, files.open_to_write(str(path), append=True) as other:
        file.write(b"two")
        other.write(b"three")
    assert path.read_bytes() == b"onetwothree"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="symbolic"):
        files.open_to_write(str(made(tmp_path / "link", "link")), create=True)
    files.open_to_write(str(made(tmp_path / "fifo", "fifo"))).close()


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_new_file_can_be_written_whatever_its_mode(tmp_path: Path, mode: int) -> None:
    with files.create(str(tmp_path / "new"), mode) as file:
        file.write(b"content")
    assert (tmp_path / "new").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    for taken in ("new", made(tmp_path / "link", "link").name):
        with pytest.raises(FileExistsError):
            files.create(str(tmp_path / taken), mode)


@pytest.mark.needs("unnamed files")
@BOTH_WAYS_TO_NO_NAME
def test_a_file_without_a_name(tmp_path: Path, o_tmpfile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not o_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        with pytest.raises(OSError, match="name from the start"):
            files.open_unnamed(str(tmp_path), nameable=True)
    with files.open_unnamed(str(tmp_path)) as file:
        status = os.fstat(file.fileno())
        assert (stat.S_IMODE(status.st_mode), status.st_nlink, status.st_dev) == (0o600, 0, tmp_path.stat().st_dev)
        assert not list(tmp_path.iterdir())


def test_a_name_comes_later_only_through_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    with pytest.raises(OSError, match="name from the start"):
        files.open_unnamed(str(tmp_path), nameable=True)
    files.open_unnamed(str(tmp_path)).close()


@BOTH_WAYS_TO_NO_NAME
def test_an_interrupt_leaves_no_file_that_has_no_name(
    tmp_path: Path, o_tmpfile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not o_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    before, number = settled_descriptors(), 1
    while interrupted(number, lambda: files.open_unnamed(str(tmp_path)), lambda path: "system" in Path(path).parts):
        assert (descriptors(), list(tmp_path.iterdir())) == (before, []), number
        number += 1
    assert number > 5


def test_it_is_opened_again(tmp_path: Path) -> None:
    """With a lock of its own: that of the first would last as long as a mapping of it."""
    with files.open_unnamed(str(tmp_path)) as file:
        file.write(CONTENT)
        with files.open_again(file) as again:
            assert again.readall() == CONTENT
            files.lock(again)
            assert files.try_lock(file) is False
        assert files.try_lock(file) is True


def test_it_gets_a_name_that_nothing_has(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with files.open_unnamed(str(tmp_path), nameable=True) as file:
        file.write(CONTENT)
        with pytest.raises(FileExistsError):
            files.give_name(file, str(tmp_path / "taken"))
        files.give_name(file, str(tmp_path / "name"))
        assert (tmp_path / "name").read_bytes() == CONTENT


# ---- content


@pytest.mark.needs("a position")
def test_reading_and_writing_at_an_offset_move_nothing(path: Path) -> None:
    with files.open_to_write(str(path)) as file:
        file.seek(7)
        files.write_at(file, 4000, b"0123456789" * 10)
        target = bytearray(50)
        assert files.read_at(file, 3990, memoryview(target)) == 50
        assert target == CONTENT[3990:4000] + b"0123456789" * 4
        assert files.read_at(file, 4090, memoryview(target)) == 10
        assert files.read_at(file, 4100, memoryview(target)) == 0
        assert file.tell() == 7
    assert path.read_bytes() == CONTENT[:4000] + b"0123456789" * 10


def test_a_short_write_is_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[:3], offset))
    with files.open_to_write(str(path)) as file:
        files.write_at(file, 5, b"0123456789")
    assert path.read_bytes() == CONTENT[:5] + b"0123456789" + CONTENT[15:]


@pytest.mark.parametrize("offset", [0, 3, CHUNK, 3 * CHUNK])
@pytest.mark.parametrize("nbytes", [None, 0, 1, CHUNK, CHUNK + 1, 5 * CHUNK])
def test_a_range_comes_in_pieces(path: Path, offset: int, nbytes: int | None) -> None:
    content = os.urandom(2 * CHUNK + 17)
    path.write_bytes(content)
    with files.open_to_read(str(path)) as file:
        pieces = [bytes(piece) for piece in files.chunks(file, offset, *[] if nbytes is None else [nbytes])]
    assert b"".join(pieces) == content[offset : None if nbytes is None else offset + nbytes]
    assert all(0 < len(piece) <= CHUNK for piece in pieces)


def test_a_sandbox_that_hides_the_limits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, resource, "getrlimit", errno.EPERM)
    with files.open_to_write(str(path)) as file:
        files.reserve(file, 2 * len(CONTENT))
    assert path.stat().st_size == 2 * len(CONTENT)


@pytest.mark.parametrize(
    ("problem", "raised"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EINVAL, False)]
)
@pytest.mark.needs("a C library")
def test_what_the_disk_refused_is_told(path: Path, problem: int, raised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, offset: ctypes.c_int64, *_: object) -> int:
        assert offset.value > len(CONTENT)
        ctypes.set_errno(problem)
        return -1

    with files.open_to_write(str(path)) as file:
        files.check_written_back(file, len(CONTENT))
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(sync_file_range=refuse))
        with pytest.raises(OSError, match=os.strerror(problem)) if raised else nullcontext():
            files.check_written_back(file, len(CONTENT))
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
        files.check_written_back(file, len(CONTENT))


# ---- owners


def given_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, OTHER_USER, -1)


@pytest.mark.parametrize(
    ("change", "own", "private"),
    [
        (lambda path: path.chmod(0o755), True, True),
        (lambda path: path.chmod(0o720), True, False),
        (lambda path: path.chmod(0o702), True, False),
        (given_away, False, False),
    ],
)
@pytest.mark.usefixtures("shared_group")
def test_whose_a_file_is(path: Path, change: Callable[[Path], None], own: bool, private: bool) -> None:
    change(path)
    assert (files.is_own(path.stat()), files.is_private(path.stat())) == (own, private)


@pytest.mark.parametrize(
    ("group", "members", "private"),
    [("me", [], True), ("me", ["me"], True), ("me", ["me", "you"], False), ("us", [], False)],
)
def test_a_group_of_ones_own(
    group: str, members: list[str], private: bool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems that give each user one, and let it write to all that the user makes."""
    gid = path.stat().st_gid
    monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="me", pw_gid=gid))
    monkeypatch.setattr(grp, "getgrgid", {gid: SimpleNamespace(gr_name=group, gr_mem=members)}.__getitem__)
    for writable in (path, tmp_path):
        writable.chmod(0o770)
    assert files.is_private(path.stat()) == private
    with nullcontext() if private else pytest.raises(PermissionError):
        files.safe_directory(str(tmp_path))
    monkeypatch.setattr(grp, "getgrgid", {}.__getitem__)  # a group without a name
    assert not files.is_private(path.stat())


def test_a_safe_directory_is_told_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    assert files.safe_directory(str(tmp_path / "link")) == os.path.realpath(tmp_path / "real")
    with pytest.raises(FileNotFoundError):
        files.safe_directory(str(tmp_path / "gone"))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777, 0o1775])
def test_a_directory_is_safe_if_others_cannot_exchange_its_files(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert files.safe_directory(str(tmp_path)) == os.path.realpath(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.chmod(0o775), "not sticky"),
        (lambda path: path.chmod(0o757), "not sticky"),
        (given_away, rf"another user \({OTHER_USER}\)"),
    ],
)
@pytest.mark.usefixtures("shared_group")
def test_a_directory_is_unsafe_if_others_can(tmp_path: Path, change: Callable[[Path], None], problem: str) -> None:
    change(tmp_path)
    with pytest.raises(PermissionError, match=f"{problem}.*{tmp_path}'"):
        files.safe_directory(str(tmp_path))
