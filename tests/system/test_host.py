"""What the system gives a process."""

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest

from ort_qdq_plugin.system.platform import files, host
from tests.interrupting import interrupted
from tests.lacking import resource
from tests.support import descriptors, mapped, python, refuse, settled_descriptors

MB = 1 << 20
SMALLEST_PAGE = 4096  # of any system


def rss_of(path: Path) -> int:
    """How many bytes of a file's mappings are in this process."""
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags")
    sizes = [
        line.split()[1] for block in blocks if f" {path}\n" in block for line in block.splitlines() if line[:4] == "Rss:"
    ]
    return sum(map(int, sizes)) * 1024


def test_a_mapping_is_of_the_file_and_outlives_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with files.open_to_write(str(path)) as file:
        to_read, to_write = host.map_file(file, 10), host.map_file(file, 5, writable=True)
        with pytest.raises(ValueError, match="length"):
            host.map_file(file, 11)
    to_write[:2] = b"ab"
    assert (path.read_bytes(), to_read[:], len(to_write)) == (b"ab23456789", b"ab23456789", 5)
    with pytest.raises(TypeError):
        to_read[0] = 1


@pytest.mark.parametrize("size", [0, 11])
def test_no_more_is_mapped_than_the_file_has(tmp_path: Path, size: int) -> None:
    """Behind its end, reading would end the process."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with files.open_to_read(str(tmp_path / "file")) as file, pytest.raises(ValueError, match=f"length {size} "):
        host.map_file(file, size)


@pytest.mark.parametrize("writable", [False, True])
def test_a_mapping_has_no_descriptor(tmp_path: Path, writable: bool) -> None:
    """And goes with its last reference."""
    (tmp_path / "file").write_bytes(b"0123456789")
    before = settled_descriptors()
    with files.open_to_write(str(tmp_path / "file")) as file:
        mapping = host.map_file(file, 10, writable=writable)
    assert descriptors() == before
    view = memoryview(mapping)
    with pytest.raises(BufferError):
        mapping.close()
    del mapping
    assert len(mapped(tmp_path)) == 1
    assert (bytes(view[:3]), view.readonly) == (b"012", not writable)
    del view
    assert not mapped(tmp_path)


@pytest.mark.parametrize("step", ["asked", "mapped"])
@pytest.mark.needs("sizes")
def test_a_mapping_that_is_refused_leaves_nothing(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        if step == "asked":
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        ctypes.set_errno(errno.ENODEV)
        return -1

    (tmp_path / "file").write_bytes(b"0123456789")
    if step == "asked":
        monkeypatch.setattr(mmap, "mmap", refuse)
    else:
        monkeypatch.setattr(host, "_libc_mmap", lambda: refuse)
    before = host.sizes_of()["VmSize"]
    with files.open_to_read(str(tmp_path / "file")) as file, pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        host.map_file(file, 10)
    assert not mapped(tmp_path)
    assert host.sizes_of()["VmSize"] <= before + MB


def test_an_interrupt_at_any_place_leaves_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    number = 1
    with files.open_to_write(str(tmp_path / "file")) as file:
        while interrupted(number, lambda: host.map_file(file, 10), lambda path: path == host.__file__):
            assert not mapped(tmp_path), number
            number += 1
    assert number > 5


def test_anonymous_memory_is_zero_and_private() -> None:
    memory = host.map_anonymous(MB)
    assert memory[:] == bytes(MB)
    child = os.fork()
    if not child:
        memory[0] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert memory[0] == 0


@pytest.mark.needs("counted pages")
@pytest.mark.parametrize(
    ("offset", "nbytes", "left"), [(5, 0, 8), (0, 1, 7), (4097, 4095, 7), (4095, 2, 6), (0, 8 * 4096, 0)]
)
@pytest.mark.needs("dropped pages")
def test_pages_that_a_range_touches_are_dropped_and_come_back(tmp_path: Path, offset: int, nbytes: int, left: int) -> None:
    path = tmp_path / "file"
    with files.create(str(path), 0o600) as file:
        file.truncate(8 * 4096)
        mapping = host.map_file(file, 8 * 4096, writable=True)
    mapping[:] = content = os.urandom(8 * 4096)
    assert rss_of(path) == 8 * 4096
    host.drop_pages(mapping, offset, nbytes)
    assert rss_of(path) == left * 4096
    assert mapping[:] == content


@pytest.mark.needs("a C library")
def test_pages_that_cannot_be_dropped_stay(tmp_path: Path) -> None:
    """Some sandboxes refuse the call; the system does for pages that are locked in memory."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with files.open_to_write(str(tmp_path / "file")) as file:
        mapping = host.map_file(file, 10, writable=True)
    libc, page = ctypes.CDLL(None, use_errno=True), ctypes.byref(ctypes.c_char.from_buffer(mapping))
    if libc.mlock(page, ctypes.c_size_t(10)):
        pytest.skip("no page can be locked here")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        mapping.madvise(mmap.MADV_DONTNEED)
    host.drop_pages(mapping, 0, 10)
    assert libc.munlock(page, ctypes.c_size_t(10)) == 0


def test_a_sandbox_that_hides_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, resource, "getrlimit", errno.EPERM)
    assert not host.memory_is_limited()


LIMITS = """
import resource, sys
from ort_qdq_plugin.system.platform import host
limit = getattr(resource, sys.argv[1])
resource.setrlimit(limit, (1 << 40, resource.getrlimit(limit)[1]))
print(host.memory_is_limited())
"""


@pytest.mark.needs("memory limits")
@pytest.mark.parametrize(("limit", "told"), [("RLIMIT_AS", True), ("RLIMIT_DATA", True), ("RLIMIT_FSIZE", False)])
def test_whether_memory_is_limited(limit: str, told: bool) -> None:
    if host.memory_is_limited():
        pytest.skip("it is limited here")
    done = python(LIMITS, limit)
    assert done.stdout == f"{told}\n", done.stderr


def test_anonymous_memory_is_that_which_no_file_backs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * MB))
    before = host.anonymous_bytes()
    with open(tmp_path / "file", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        assert sum(mapping[:: mmap.PAGESIZE]) == 0
        assert host.anonymous_bytes() - before < 16 * MB
    block = mmap.mmap(-1, 64 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, len(block), SMALLEST_PAGE):
        block[start] = 1
    assert 48 * MB < host.anonymous_bytes() - before < 80 * MB
    block.close()


@pytest.mark.needs("a C library")
def test_what_the_heap_holds_is_what_was_not_freed() -> None:
    """Blocks of all sizes, those that glibc maps one by one included."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not tell")
    for size in (1000, 50_000, 64 * MB):
        before = host.heap_bytes()
        blocks = [ctypes.create_string_buffer(size) for _ in range(64 * MB // size)]
        assert 60 * MB < host.heap_bytes() - before < 80 * MB
        del blocks
        assert abs(host.heap_bytes() - before) < 4 * MB


@pytest.mark.needs("sizes")
def test_which_bytes_of_a_file_are_in_this_process(tmp_path: Path) -> None:
    """Systems bring in more than what is touched, but no more than what is mapped."""

    def of_file(*ranges: tuple[int, int]) -> int | None:
        return host.resident_bytes(str(path), ranges)

    def mapping(offset: int, nbytes: int) -> mmap.mmap:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ, offset=offset)

    page, path = mmap.PAGESIZE, tmp_path / "a file"
    path.write_bytes(bytes(8 * MB + 1))
    whole = (0, 8 * MB + 1)
    untouched, one, some, last = mapping(*whole), mapping(MB, page), mapping(2 * MB, MB), mapping(8 * MB, 1)
    assert of_file(whole) == 0
    assert one[0] == 0
    assert of_file(whole) == of_file((MB + 7, 1)) == of_file((MB - 1, 2)) == of_file((0, MB), (MB, 1)) == page
    assert of_file((0, MB), (MB + page, 7 * MB)) == of_file((MB, 0)) == of_file() == 0
    assert sum(some[::page]) == last[0] == 0
    assert of_file((2 * MB, MB)) == MB
    assert (of_file((8 * MB, 1)), of_file(whole)) == (page, MB + 2 * page)
    one.madvise(mmap.MADV_DONTNEED)
    some.close()
    assert of_file(whole) == page
    assert len(untouched) == 8 * MB + 1
    path.unlink()
    assert of_file(whole) is None


@pytest.mark.needs("/proc")
def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(host, "open_to_read", refuse)
    assert host.resident_bytes(__file__, [(0, 1)]) is None
    assert (host.anonymous_bytes(), host.sizes_of(), host.free_memory(), host.boot_id()) == (0, {}, 0, "")
    assert host.processor() == os.uname().machine


@pytest.mark.parametrize(("machine", "arm"), [("aarch64", True), ("arm64", True), ("armv7l", True), ("x86_64", False)])
def test_whether_the_processor_is_of_arm(machine: str, arm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "host", "6", "#1", machine)))
    assert host.is_arm() == arm


@pytest.mark.needs("/proc")
def test_what_the_system_tells() -> None:
    assert 0 < host.free_memory() < os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    assert host.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip() != ""
    sizes = host.sizes_of(os.getpid())
    assert 0 < sizes["RssAnon"] + sizes["RssFile"] + sizes["RssShmem"] <= sizes["VmHWM"] <= sizes["VmSize"]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    assert sizes["VmSize"] == pytest.approx(pages * mmap.PAGESIZE, rel=0.01)
    assert host.sizes_of(0) == {}


CPUINFO = """processor\t: 0
vendor_id\t: Somebody
cpu family\t: 6
model\t\t: 85
model name\t: Some Processor at 2 GHz
stepping\t: 7
cpu MHz\t\t: 1234.5
flags\t\t: avx2 avx512
bogomips\t: 5000

processor\t: 1
vendor_id\t: Another
flags\t\t: none
"""


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        ("Somebody", "Nobody", True),
        ("cpu family\t: 6", "cpu family\t: 7", True),
        ("model\t\t: 85", "model\t\t: 86", True),
        ("stepping\t: 7", "stepping\t: 8", True),
        ("avx512", "avx512 vnni", True),
        ("1234.5", "1000.0", False),
        ("5000", "5001", False),
        ("at 2 GHz", "at 3 GHz", False),
        ("Another", "A third", False),
    ],
)
def test_a_kind_of_processor(
    before: str, after: str, differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for text in (CPUINFO, CPUINFO.replace(before, after)):
        (tmp_path / "cpuinfo").write_text(text)
        with monkeypatch.context() as patched:
            patched.setattr(host, "open_to_read", lambda _: files.open_to_read(str(tmp_path / "cpuinfo")))
            said.append(host.processor())
    assert (said[0] != said[1]) == differs
    assert os.uname().machine in said[0]


def test_processors_that_this_process_may_use() -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("a process may use all of them here")
    code = (
        "import os; from ort_qdq_plugin.system.platform import host; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    )
    done = python(f"{code}; print(host.available_processors())")
    assert done.stdout == "1\n", done.stderr
    assert host.available_processors() == len(os.sched_getaffinity(0))


@pytest.mark.needs("a C library")
def test_the_heap_keeps_no_pages_that_nothing_is_in() -> None:
    """Of blocks that the C library does not map one by one, the last is kept, so that the heap cannot shrink by itself."""
    code = """
import ctypes
from ort_qdq_plugin.system.platform import host
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(100_000) for _ in range(500)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
free = host.free_heap_bytes()
for block in blocks[:-1]:
    libc.free(block)
print(host.free_heap_bytes() - free)
before = host.anonymous_bytes()
host.trim_heap()
print(before - host.anonymous_bytes())
"""
    freed, given_back = map(int, python(code).stdout.split())
    assert given_back > 40_000_000
    assert freed > 40_000_000 or not hasattr(ctypes.CDLL(None), "mallinfo2")


def test_some_c_libraries_cannot_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_malloc_trim", lambda: None)
    host.trim_heap()
