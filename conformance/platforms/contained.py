"""A process in a container: first what the container lacks is taken away, then a new interpreter loads a model in it."""

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONTAINERS", "WAYS", "Container", "Scene", "Told"]

WAYS = ("stock", "plain load", "bytes", "by path", "cache", "shared weights")

# <sys/syscall.h>, the same for all processors; <linux/mount.h> and <linux/fcntl.h>. A kernel has it since 5.12.
_MOUNT_SETATTR = 442
_READ_ONLY, _RECURSIVE, _HERE = 0x1, 0x8000, -100
_NO_EXEC, _BIND = 0x8, 0x1000  # <sys/mount.h>; as an attribute, the first is the same
_NOBODY = 54321  # a user without an entry in /etc/passwd
# Python itself does not start with less than 96 kB of stack. Threads can do with less.
_STACK_BYTES, _THREAD_STACK_BYTES = 96 << 10, 64 << 10
_THREAD_STACK = "CONTAINED_THREAD_STACK"
# What everything takes once it is imported, and in addition to that what a load may take.
_IMPORTED = """
import onnx, onnxruntime, ort_qdq_plugin
from ort_qdq_plugin.system.platform import host
print(host.sizes_of()["VmSize"])
"""
_LOAD_BYTES = 128 << 20


class Scene(NamedTuple):
    """A model, in one file and in two, the folder that has it and room for more, and a digest of what stock computes."""

    model: str
    inline: str
    folder: str
    digest: str


class Told(NamedTuple):
    """What a process in a container tells of a load by one of the `WAYS`."""

    way: str
    route: str = ""
    digest: str = ""
    warnings: Sequence[str] = ()
    error: str = ""

    def problem(self, digest: str) -> str:
        """What is wrong with it, if stock ONNX Runtime's result has this digest; "" if nothing is."""
        if self.error or self.digest != digest:
            return self.error or "other results than stock ONNX Runtime's"
        return f"{len(self.warnings)} warnings: {self.warnings}" if len(self.warnings) > 1 else ""

    def __str__(self) -> str:
        return self.error or "; ".join([self.route, *(f"warning: {warning}" for warning in self.warnings)])


class Container(NamedTuple):
    """A container that lacks something."""

    name: str
    how: str
    set_up: Callable[[Scene, dict[str, str]], None]
    """Takes it away, of the process itself or of the environment that the next one gets."""
    needs_root: bool = False
    inline: bool = False  # whether it has the model in one file: stock ONNX Runtime loads no other there


def _libc(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        problem = ctypes.get_errno()
        raise OSError(problem, f"{name}: {os.strerror(problem)}")


def _restrict(path: str, attribute: int) -> None:
    """Give all mounts below a path an attribute."""
    attributes = (ctypes.c_uint64 * 4)(attribute)
    _libc("syscall", _MOUNT_SETATTR, _HERE, path.encode(), _RECURSIVE, attributes, ctypes.c_size_t(32))


def _mount(path: str, kind: str = "tmpfs", flags: int = 0, data: str = "") -> None:
    _libc(
        "mount",
        b"tmpfs" if kind == "tmpfs" else path.encode(),
        path.encode(),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    )


def _read_only(scene: Scene, environment: dict[str, str]) -> None:
    _restrict(os.sep, _READ_ONLY)


def _no_home(scene: Scene, environment: dict[str, str]) -> None:
    del environment["HOME"]


def _unknown_user(scene: Scene, environment: dict[str, str]) -> None:
    _no_home(scene, environment)
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)


def _tiny_shm(scene: Scene, environment: dict[str, str]) -> None:
    _restrict(os.sep, _READ_ONLY)
    _mount("/dev/shm", data="size=64k")
    environment["TMPDIR"] = "/dev/shm"


def _no_proc(scene: Scene, environment: dict[str, str]) -> None:
    _mount("/proc", data="size=4k")
    _restrict("/proc", _READ_ONLY)


def _no_exec(scene: Scene, environment: dict[str, str]) -> None:
    for path in (scene.folder, "/tmp", "/var/tmp", "/dev/shm"):
        # What is to run stays where it can.
        if os.path.isdir(path) and not any(Path(needed).is_relative_to(path) for needed in (sys.prefix, sys.base_prefix)):
            _mount(path, "bind", _BIND)
            _restrict(path, _NO_EXEC)
            assert os.statvfs(path).f_flag & _NO_EXEC


def _little_memory(scene: Scene, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTED], env=environment, capture_output=True, text=True, check=True)
    limit = int(done.stdout) + _LOAD_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _small_stacks(scene: Scene, environment: dict[str, str]) -> None:
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES, _STACK_BYTES))
    environment[_THREAD_STACK] = str(_THREAD_STACK_BYTES)


def _all_at_once(scene: Scene, environment: dict[str, str]) -> None:
    _little_memory(scene, environment)
    _tiny_shm(scene, environment)
    _no_exec(scene, environment)
    _no_proc(scene, environment)
    _small_stacks(scene, environment)
    _unknown_user(scene, environment)


CONTAINERS = (
    Container("read-only root", "every mount read-only: no directory for temporary files", _read_only),
    Container("no HOME", "the variable is not set", _no_home),
    Container("unknown user", f"number {_NOBODY}, not in /etc/passwd; no HOME", _unknown_user, needs_root=True),
    Container("tiny /dev/shm", "64 kB, which TMPDIR names; all else read-only", _tiny_shm),
    Container("no /proc", "an empty folder; the model in one file", _no_proc, inline=True),
    Container("noexec", "on the folders of models, cache and temporary files", _no_exec),
    Container("little memory", "`ulimit -v`: what is imported, and 128 MB", _little_memory),
    Container("small stacks", "`ulimit -s 96`, threads 64 kB", _small_stacks),
    Container("all of these", "at once; the model in one file", _all_at_once, needs_root=True, inline=True),
)


def _load(scene: Scene, cache: str, way: str) -> Told:
    import logging
    from logging.handlers import BufferingHandler

    import onnxruntime as ort

    from conformance.sessions import CPU, digest_of, quiet_options
    from ort_qdq_plugin import Options, create_session, report_of

    options = quiet_options(threads=2)
    if way == "stock":
        return Told(way, "stock", digest_of(ort.InferenceSession(scene.model, options, providers=CPU)))
    cached = way in ("cache", "shared weights")
    ours = Options(cache_dir=os.path.join(cache, way), share_weights=way != "cache") if cached else Options()
    if way == "by path":
        options.add_provider(CPU[0], {})
    model = Path(scene.inline).read_bytes() if way == "bytes" else scene.model
    listener = BufferingHandler(capacity=1000)
    listener.setLevel(logging.WARNING)
    logger = logging.getLogger("ort_qdq_plugin")
    logger.addHandler(listener)
    try:
        session = create_session(model, options, None if way == "by path" else CPU, options=ours)
    finally:
        logger.removeHandler(listener)
    report = report_of(session)
    assert report is not None
    route = f"{report.route}, {report.cache}" if report.cache else report.route
    return Told(way, route, digest_of(session), [record.getMessage() for record in listener.buffer])


def _limit_stacks(nbytes: int) -> None:
    """Limit those of the threads that this process starts without saying how much they need."""
    attributes = ctypes.create_string_buffer(64)  # a pthread_attr_t has 56 bytes, or 64
    _libc("pthread_attr_init", attributes)
    _libc("pthread_attr_setstacksize", attributes, ctypes.c_size_t(nbytes))
    _libc("pthread_setattr_default_np", attributes)


def _enter(container: Container, scene: Scene, ways: Sequence[str]) -> None:
    """Become the process that loads, in the container."""
    environment = dict(os.environ)
    cache = os.path.join(scene.folder, f"cache-{os.getpid()}")
    container.set_up(scene, environment)
    os.execve(
        sys.executable, [sys.executable, "-m", "conformance.platforms.contained", "", cache, *scene, *ways], environment
    )


def _main() -> int:
    name, cache, *fields = sys.argv[1:]
    scene, ways = Scene(*fields[:4]), fields[4:]
    if name:
        _enter(next(container for container in CONTAINERS if container.name == name), scene, ways)
    if _THREAD_STACK in os.environ:
        _limit_stacks(int(os.environ[_THREAD_STACK]))
    for way in ways:
        # The cache is asked twice: once to make the entry, and once to use it.
        for _ in range(2 if way in ("cache", "shared weights") else 1):
            print(json.dumps(_load(scene, cache, way)._asdict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
