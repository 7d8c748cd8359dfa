"""The helper process that pre-packs an entry. It runs this package's code only, whatever lies in the current directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ort_qdq_plugin import log
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.system.environment import NO_TELEMETRY, PREFIX, TUNABLES, with_huge_heap
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.threads import Work

__all__ = ["prepacked_in_another_process"]

# Isolated mode (-I) takes neither variables nor the current directory nor the user's site-packages. What this process has
# imported these packages from comes last, behind the standard library.
_BOOTSTRAP = (
    "import sys; sys.path += sys.argv[2:]; from ort_qdq_plugin.cache.prepack import main; sys.exit(main(sys.argv[1:2]))"
)
_NEEDED = ("ort_qdq_plugin", "onnxruntime", "onnx", "numpy", "google.protobuf", "onnxruntime_extensions")

# How long it may take at the most: far more than any machine needs, and an end for one that hangs.
_SECONDS, _BYTES_PER_SECOND = 120, 10_000_000
_POLL_SECONDS = 0.02
_NUMBERS = 2  # in a line that says how far it is: bytes done, and bytes in all


def prepacked_in_another_process(folder: str, progress: Progress | None = None) -> int:
    """Run prepack.py on the folder of an entry. `progress` is called with bytes of weights, where the system lets it.

    Returns:
        How many bytes it pre-packed; 0, and one warning, if that failed.
    """
    if not _is_plain_python():
        log.warning("weights are not shared between processes: %r is not a Python interpreter", sys.executable)
        return 0
    size = sum(os.stat(os.path.join(folder, name)).st_size for name in os.listdir(folder))
    end = time.monotonic() + _SECONDS + size / _BYTES_PER_SECOND
    # A thread of its own starts the process and waits for it: an interrupt of this one would lose what it has open.
    given_up, reached, told = list[bool](), list[tuple[int, int]](), 0
    work = Work(partial(_run, folder, lambda: bool(given_up) or time.monotonic() > end, reached))
    try:
        work.start()
        while not work.ended:
            time.sleep(_POLL_SECONDS)
            if progress is not None and len(reached) > told:
                told = len(reached)
                progress(*reached[-1])
        problem = work.take_error()
        if problem is None:
            return work.result
    except RuntimeError as no_thread:  # the interpreter is ending
        problem = no_thread
    finally:
        given_up.append(True)
    log.warning("weights are not shared between processes: %s: %s", sys.executable, problem)
    return 0


def _run(folder: str, is_over: Callable[[], bool], reached: list[tuple[int, int]]) -> int:
    """What the process prints last; it is killed as soon as it `is_over`. How far it says to be is added to `reached`.

    Raises:
        Exception: It failed.
    """
    with fork_lock:
        import subprocess
    # Huge pages: ONNX Runtime allocates the memory of each product anew, and without them a third of the time goes into
    # touching it first (50 instead of 73 ms of CPU for a product with 25 MB of weights).
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _BOOTSTRAP, folder, *_search_path()],
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        # Its sessions are no events of the user's.
        env={**environment, NO_TELEMETRY: "1", TUNABLES: with_huge_heap(environment.get(TUNABLES, ""))},
    ) as process:
        while True:
            try:
                out, messages = process.communicate(timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired as so_far:
                reached += _lines_of(so_far.output)[len(reached) :]
                if is_over():
                    process.kill()
                    process.communicate()
                    raise TimeoutError("the helper process took too long") from None
    if process.returncode:
        raise OSError((messages.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
    return int(out.split()[-1])


def _lines_of(output: bytes | None) -> list[tuple[int, int]]:
    """The whole lines of two numbers in what was printed. On Windows nothing is known of that until the process ends."""
    words = [line.split() for line in (output or b"").split(b"\n")[:-1]]
    return [(int(line[0]), int(line[1])) for line in words if len(line) == _NUMBERS and all(map(bytes.isdigit, line))]


def _is_plain_python() -> bool:
    """Whether `sys.executable` is an interpreter: in a frozen or an embedding program it is that program."""
    name = os.path.basename(sys.executable or "").lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def _search_path() -> list[str]:
    """The folders that this process has imported the needed packages from."""
    folders = []
    for name in _NEEDED:
        module: Any = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
        for package in getattr(module, "__path__", ()):
            depth = name.count(".") + 1 if name in sys.modules else 1
            path = os.path.abspath(package)
            for _ in range(depth):
                path = os.path.dirname(path)
            folders.append(path)
    return list(dict.fromkeys(folders))
