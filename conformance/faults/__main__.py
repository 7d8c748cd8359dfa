"""The fault table: real faults, each in a fresh process, and what becomes of a load that meets them.

    python -m conformance.faults [--only GLOB] [--kills 100] [--markdown FILE]

A row passes if no process of ours crashes, hangs or prints a traceback, if nothing is left on disk, if at most one warning
is logged, and if there is either a session that gives ONNX Runtime's own result or the class of error that stock ONNX
Runtime raises in the same fault. The exit code is 1 if a row fails. Most rows that fill disks or break them need root.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import hashlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

from conformance.tables.decoder import ModelPair, spec_of, write_pair

__all__ = ["FAULTS", "Fault", "Outcome", "Scene", "judge", "main", "run_fault", "strike"]

MB = 1 << 20
_TIMEOUT = 40.0  # seconds; a load takes less than two
_UNUSED_UID = 54321
_PAGE = 4096
_LOADED = "loaded"
_UNREADABLE = "SourceUnreadableError"  # has no counterpart: ONNX Runtime maps what it cannot read
# What this package's code, what it imports and what it has freed again take while stock ONNX Runtime loads.
_DATA_SLACK = (8 * MB, 16 * MB, 24 * MB, 32 * MB)
_ADDRESS_SLACK = (16 * MB, 80 * MB, 144 * MB)
# What a want of memory is called depends on where it is noticed.
_MEMORY_ERRORS = frozenset({"MemoryError", "RuntimeError", "RuntimeException", "Fail"})
_FILLER = "filler"  # the file that fills a disk
_TRIES = 3  # of what depends on how much memory a process happens to have

# Shapes of the models: some 20 MB of weights and scales, or 2 MB.
_SHAPE = {"layers": 2, "hidden": 768, "ffn": 3072, "vocab": 16384}
_QUICK_SHAPE = {"layers": 1, "hidden": 256, "ffn": 1024, "vocab": 4096}


# ---- one load, in its own process ------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a child process is to do: break something, then load."""

    model: str
    loader: str = "ours"  # "ours", "by path" or "stock"
    spill_dir: str | None = None
    threads: int = 2
    buffer: str = "file"
    breaks: str = ""  # a name in _BREAKS
    value: int = 0
    paths: tuple[str, ...] = ()  # what the break works on
    wait: bool = False  # for a line on standard input, once everything is imported
    again: bool = False  # load once more, after an interrupt or beside the first session
    uid: int = 0  # run as this user from then on


@dataclass(frozen=True)
class Outcome:
    """What became of a load. `result` is a digest of the output; `error` the exception's class."""

    result: str = ""
    error: str = ""
    route: str = ""
    warnings: tuple[str, ...] = ()
    again: str = ""
    left: tuple[str, ...] = ()
    died: str = ""
    messages: str = ""
    stage: str = ""
    missed: bool = False  # the moment at which something was to break never came

    @property
    def short(self) -> str:
        """A few words for the table."""
        if self.died:
            return self.died
        ending = f", then {self.again}" if self.again else ""
        return (f"session ({self.route})" if self.result else self.error) + ending


class _Listener(logging.Handler):
    """The package's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _load(job: Job) -> Any:
    import onnxruntime as ort

    from ort_qdq_plugin import Options, create_session

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = job.threads
    if job.loader == "stock":
        return ort.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    ours = Options(buffer=job.buffer, spill_dir=job.spill_dir, progress=_progress, threads=job.threads)
    if job.loader == "by path":
        options.add_provider("CPUExecutionProvider", {})
        return create_session(job.model, options, options=ours)
    return create_session(job.model, options, ["CPUExecutionProvider"], options=ours)


def _digest(session: Any) -> str:
    import numpy as np

    entry = session.get_inputs()[0]
    x = np.linspace(-1, 1, 3 * entry.shape[2], dtype=np.float32).reshape(1, 3, -1)
    return hashlib.sha256(session.run(None, {entry.name: x})[0].tobytes()).hexdigest()


def _child(job: Job) -> Outcome:
    """Do a job in this process."""
    import onnxruntime

    import ort_qdq_plugin.fusion.match
    import ort_qdq_plugin.memory.handover
    import ort_qdq_plugin.packing.pack  # noqa: F401
    from ort_qdq_plugin import report_of

    onnxruntime.set_default_logger_severity(4)
    listener = _Listener()
    logging.getLogger("ort_qdq_plugin").addHandler(listener)
    outcome, session = Outcome(), None
    if job.uid:
        os.setgroups([])
        os.setgid(job.uid)
        os.setuid(job.uid)
    if job.breaks:
        _BREAKS[job.breaks](job)
    try:
        if job.wait:
            _announce_stages()
            print("ready", flush=True)
            sys.stdin.readline()
        session = _load(job)
        if job.wait:
            print(_LOADED, flush=True)
        report = report_of(session)
        route = "stock, asked" if report is None else report.route
        outcome = replace(outcome, result=_digest(session), route=route)
    except (Exception, KeyboardInterrupt) as error:
        outcome = replace(outcome, error=type(error).__name__, messages=str(error)[:300])
        del error
    if job.again:
        outcome = _load_again(job, outcome)
    return replace(outcome, warnings=tuple(listener.messages), missed=job.breaks in _TIMED and not _happened)


def _load_again(job: Job, outcome: Outcome) -> Outcome:
    """The same once more, with the first session, if there is one, still alive."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    left = os.listdir(job.spill_dir) if job.spill_dir else []
    again = _digest(_load(replace(job, breaks="")))
    same = "the same again" if again == outcome.result else again
    return replace(outcome, again=same, left=tuple(left))


_happened: list[str] = []  # what was to break at some moment, once it has
_while_packing: list[Callable[[], None]] = []


_packed_hooks: list[Callable[[], None]] = []


def _progress(done: int, total: int) -> None:
    while _while_packing or (done == total and _packed_hooks):
        _happened.append("while packing")
        (_while_packing or _packed_hooks).pop()()


def _at_stage(name: str, occurrence: int, action: Callable[[], None]) -> None:
    """Call `action` when the load enters a stage of this name for the so-manieth time."""
    from ort_qdq_plugin import session

    entered, original = [0], session._Clock.stage

    def stage(clock: Any, entering: str) -> Any:
        if entering == name:
            entered[0] += 1
            if entered[0] == occurrence:
                _happened.append(name)
                action()
        return original(clock, entering)

    setattr(session._Clock, "stage", stage)  # noqa: B010


def _announce_stages() -> None:
    """Print each stage's name, so that whoever ends this process knows where it was."""
    from ort_qdq_plugin import session

    original = session._Clock.stage

    def stage(clock: Any, entering: str) -> Any:
        os.write(1, f"{entering}\n".encode())
        return original(clock, entering)

    setattr(session._Clock, "stage", stage)  # noqa: B010


# ---- breaking things in the child ------------------------------------------------------------------


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def _status(key: str) -> int:
    """A size in bytes from /proc/self/status."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(f"{key}:"))


def _limit_file_size(job: Job) -> None:
    _limit(resource.RLIMIT_FSIZE, job.value)


def _limit_file_size_deadly(job: Job) -> None:
    """As in a program that has undone Python's own setting."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _limit_file_size(job)


def _limit_descriptors(job: Job) -> None:
    # The number of a new descriptor is what counts; the one that lists them is closed again.
    _limit(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + job.value)


def _limit_addresses(job: Job) -> None:
    _limit(resource.RLIMIT_AS, _status("VmSize") + job.value)


def _limit_data(job: Job) -> None:
    _limit(resource.RLIMIT_DATA, _status("VmData") + job.value)


def _limit_threads(job: Job) -> None:
    _limit(resource.RLIMIT_NPROC, len(os.listdir("/proc/self/task")) + job.value)


def _join_group(job: Job) -> None:
    """Enter a control group and lower a limit of it: job.paths is (group, file of the limit)."""
    group = Path(job.paths[0])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    present = {
        "memory.limit_in_bytes": lambda: int((group / "memory.usage_in_bytes").read_text()) + _resident(),
        "memory.max": lambda: int((group / "memory.current").read_text()) + _resident(),
        "pids.max": lambda: len(os.listdir("/proc/self/task")),
    }[job.paths[1]]()
    (group / job.paths[1]).write_text(str(present + job.value))


def _resident() -> int:
    return 0


def _overpromise(_: Job) -> None:
    """A file system that has less room, when it comes to writing, than it said."""
    os.posix_fallocate = lambda descriptor, offset, size: os.ftruncate(descriptor, offset + size)


def _write_back(job: Job) -> None:
    """Have what is packed written to the disk, and read from there again."""

    def write_back() -> None:
        os.sync()
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith(f"{job.spill_dir}/"):
                    os.posix_fadvise(int(name), 0, 0, os.POSIX_FADV_DONTNEED)

    _packed_hooks.append(write_back)


def _fill_when_loaded(job: Job) -> None:
    """Fill the disk once the first session is there."""
    _at_stage("open", 2, lambda: _fill(Path(job.spill_dir or "")))


def _fill(folder: Path) -> None:
    with open(folder / _FILLER, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MB))
        except OSError:
            return


def _interrupt_packing(_: Job) -> None:
    _while_packing.append(lambda: os.kill(os.getpid(), signal.SIGINT))


def _interrupt_initialization(job: Job) -> None:
    def later() -> None:
        threading.Timer(job.value / 1000, os.kill, (os.getpid(), signal.SIGINT)).start()

    _at_stage("hand over", 1, later)


def _terminate_packing(_: Job) -> None:
    _while_packing.append(lambda: os.kill(os.getpid(), signal.SIGTERM))


def _change_file(kind: str, target: str, other: str) -> None:
    """Do to the file what somebody else might."""
    if kind == "replaced":
        shutil.copy(other, target + ".new")
        os.replace(target + ".new", target)
    elif kind == "rewritten":
        with open(target, "r+b") as file, open(other, "rb") as new:
            shutil.copyfileobj(new, file)
    elif kind == "truncated":
        os.truncate(target, os.path.getsize(target) // 2)
    elif kind == "emptied":
        os.truncate(target, 0)
    else:
        with open(target, "ab") as file:
            file.write(bytes(_PAGE))


_CHANGES = ("replaced", "rewritten", "truncated", "emptied", "grown")
_QUICK_CHANGES = ("replaced", "rewritten", "truncated")
_MOMENTS = ("before packing", "while packing", "before the session")


def _change_source(job: Job) -> None:
    """job.paths is (kind, moment, file to change, file with other content)."""
    kind, moment, target, other = job.paths
    change = partial(_change_file, kind, target, other)
    if moment == "while packing":
        _while_packing.append(change)
    else:
        _at_stage(*{"before packing": ("pack", 1), "before the session": ("plan", 2)}[moment], change)


_BREAKS: dict[str, Callable[[Job], None]] = {
    "file size": _limit_file_size,
    "file size, deadly": _limit_file_size_deadly,
    "descriptors": _limit_descriptors,
    "addresses": _limit_addresses,
    "data": _limit_data,
    "threads": _limit_threads,
    "group": _join_group,
    "overpromise": _overpromise,
    "write back": _write_back,
    "fill later": _fill_when_loaded,
    "interrupt packing": _interrupt_packing,
    "interrupt initialization": _interrupt_initialization,
    "terminate packing": _terminate_packing,
    "source": _change_source,
}
# Those that wait for a moment of the load.
_TIMED = {"write back", "fill later", "interrupt packing", "interrupt initialization", "terminate packing", "source"}


# ---- children from outside -------------------------------------------------------------------------


def _start(job: Job, temporary: Path, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "conformance.faults", "--child", json.dumps(asdict(job))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # ONNX Runtime keeps a data base of its own in the home directory.
        env={**os.environ, "TMPDIR": str(temporary), "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def _outcome(process: subprocess.Popen[str], out: str, messages: str) -> Outcome:
    if process.returncode < 0:
        return Outcome(died=f"killed by {signal.Signals(-process.returncode).name}", messages=messages)
    if process.returncode:
        tail = messages.strip().splitlines()[-1:] or [""]
        return Outcome(died=f"exit code {process.returncode}: {tail[0][:200]}", messages=messages)
    said = json.loads(out.strip().splitlines()[-1])
    for key in ("warnings", "left"):
        said[key] = tuple(said[key])
    outcome = Outcome(**said)
    return replace(outcome, messages=messages or outcome.messages) if "Traceback" in messages else outcome


def _finish(process: subprocess.Popen[str]) -> Outcome:
    try:
        out, messages = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(died="hangs")
    return _outcome(process, out, messages)


def _listing(folders: Sequence[Path]) -> set[str]:
    """Everything in these folders."""
    return {
        os.path.join(where, name)
        for folder in folders
        for where, below, files in os.walk(folder)
        for name in (*below, *files)
        if name not in ("lost+found", _FILLER)
    }


# ---- judging ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """One load, judged: what is wrong with it, or nothing, and a few words on it."""

    what: str
    problem: str = ""
    left: int = 0
    where: str = ""


def judge(ours: Outcome, stock: Outcome, results: set[str], left: set[str], alike: frozenset[str] = frozenset()) -> Verdict:
    """Judge a load by what stock ONNX Runtime made of the same fault, and by the results that are right.

    Errors that are `alike` are as good as each other.
    """
    problem, what = "", ours.short
    if ours.result and ours.result not in results:
        problem = "wrong result"
    elif ours.died and ours.died != stock.died:
        problem = f"{ours.died} {ours.messages[-300:]}; stock: {stock.short}"
    elif ours.died:
        what = f"{ours.died}, as stock is"
    elif ours.error == _UNREADABLE and stock.died:
        what = f"{ours.error}; stock: {stock.died}"
    elif ours.error and ours.error != stock.error and not {ours.error, stock.error} <= alike:
        problem = f"{ours.error}: {ours.messages}; stock: {stock.short}"
    elif ours.error:
        what = f"stock's own {stock.error}"
    elif len(ours.warnings) > 1:
        problem = f"{len(ours.warnings)} warnings: {ours.warnings}"
    elif "Traceback" in ours.messages:
        problem = f"a traceback: {ours.messages[-300:]}"
    if ours.missed:
        problem = problem or "the moment never came"
    if left or ours.left:
        problem = problem or f"left behind: {sorted(left) or ours.left}"
    if ours.result and ours.warnings:
        what += " and a warning"
    return Verdict(what, problem, len(left), ours.stage)


class Skipped(Exception):
    """Why a row cannot be had here."""


class Scene:
    """A folder with the models, and what rows need again and again."""

    def __init__(self, folder: Path, quick: bool = False, kills: int = 100) -> None:
        self.folder = folder
        self.kills = kills
        self._quick = quick
        self._results: dict[str, str] = {}
        self.spill = folder / "spill"
        self.temporary = folder / "tmp"
        self.home = folder / "home"
        for made in (self.spill, self.temporary, self.home):
            made.mkdir()
            made.chmod(0o1777)

    @cached_property
    def loaders(self) -> tuple[str, ...]:
        """Our routes. By path needs a directory that is safe, which none seems where root is not mapped (unshare -r)."""
        folders = [self.spill, *self.spill.parents]
        return ("ours", "by path") if {folder.stat().st_uid for folder in folders} <= {0, os.geteuid()} else ("ours",)

    @property
    def contenders(self) -> list[tuple[ModelPair, str]]:
        """Models and routes: packed weights by each, weights in place by the first."""
        return [*((self.k_major, loader) for loader in self.loaders), (self.n_major, "ours")]

    def _pair(self, name: str, variant: str, **changes: Any) -> ModelPair:
        spec = spec_of(variant, **(_QUICK_SHAPE if self._quick else _SHAPE), **changes)
        return write_pair(spec, self.folder / name)

    @cached_property
    def k_major(self) -> ModelPair:
        """Weights that have to be packed."""
        return self._pair("k", "uint4")

    @cached_property
    def k_major_other(self) -> ModelPair:
        """The same with other weights."""
        return self._pair("k-other", "uint4", seed=1)

    @cached_property
    def n_major(self) -> ModelPair:
        """Weights that are used where they are."""
        return self._pair("n", "uint4-nmajor")

    @cached_property
    def n_major_other(self) -> ModelPair:
        """The same with other weights."""
        return self._pair("n-other", "uint4-nmajor", seed=1)

    @cached_property
    def inline(self) -> ModelPair:
        """Weights inside the model's own file."""
        return self._pair("inline", "uint4", inline=True)

    def results_of(self, *pairs: ModelPair) -> set[str]:
        """What stock ONNX Runtime makes of models, of the QDQ form and of the fused one."""
        for path in (str(path) for pair in pairs for path in (pair.qdq, pair.qop)):
            if path not in self._results:
                outcome = self.run(Job(path, "stock"))
                if not outcome.result:
                    raise RuntimeError(f"{path}: {outcome}")
                self._results[path] = outcome.result
        return {self._results[str(path)] for pair in pairs for path in (pair.qdq, pair.qop)}

    def run(self, job: Job, temporary: Path | None = None) -> Outcome:
        """A job in a fresh process."""
        return _finish(_start(job, temporary or self.temporary, self.home))

    def compare(
        self,
        job: Job,
        results: set[str],
        *,
        temporary: Path | None = None,
        spill: Path | None = None,
        restore: Callable[[], None] | None = None,
        tries: int = 1,
        slack: Sequence[int] = (),
        alike: frozenset[str] = frozenset(),
    ) -> Verdict:
        """The job by us and by stock ONNX Runtime, judged; `restore` is called before each.

        `slack` is by how much more of what is limited we may need: stock may have failed with so much less.
        """
        verdict = Verdict("", "not run")
        stock_job = replace(job, loader="stock", again=False)
        for _ in range(tries):
            ours, left = self._watched_run(job, temporary, [spill or self.spill], restore)
            # Where we have a session, stock ONNX Runtime does not matter.
            stock = ours if ours.result else self._watched_run(stock_job, temporary, [], restore)[0]
            verdict = judge(ours, stock, results, left, alike)
            if not verdict.problem:
                return verdict
        for less in slack if not ours.result else ():
            stock = self._watched_run(replace(stock_job, value=job.value - less), temporary, [], restore)[0]
            with_less = judge(ours, stock, results, left, alike)
            if not with_less.problem:
                return replace(with_less, what=f"{with_less.what} with a little less")
        return verdict

    def _watched_run(
        self, job: Job, temporary: Path | None, folders: Sequence[Path], restore: Callable[[], None] | None
    ) -> tuple[Outcome, set[str]]:
        """The outcome of a job, and what is there afterwards that was not."""
        if restore is not None:
            restore()
        watched = [*folders, temporary or self.temporary, Path(job.model).parent]
        before = _listing(watched)
        outcome = self.run(job, temporary)
        return outcome, _settled_listing(watched, before)

    def job(self, pair: ModelPair | None = None, **changes: Any) -> Job:
        """A job for a model (packed weights unless told otherwise) with its spill file here."""
        return replace(Job(str((pair or self.k_major).qdq), spill_dir=str(self.spill)), **changes)


# ---- file systems ----------------------------------------------------------------------------------


def _needs_root() -> None:
    if os.geteuid() != 0:
        raise Skipped("needs root")


def _needs_other_users() -> None:
    _needs_root()
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        raise Skipped("needs other users, this namespace has none")


def _needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Skipped(f"needs {', '.join(missing)}")


def _command(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"{words[0]} fails here: {done.stderr.strip()[:200]}")


@contextmanager
def _mounted(folder: Path, *options: object) -> Iterator[Path]:
    _needs_root()
    _needs("mount", "umount")
    folder.mkdir(exist_ok=True)
    try:
        _command("mount", *options, folder)
    except Skipped:
        folder.rmdir()
        raise
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def _tmpfs(scene: Scene, size: str, *options: str) -> Any:
    return _mounted(scene.folder / "tmpfs", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs")


@contextmanager
def _ext4_image(image: Path, megabytes: int) -> Iterator[Path]:
    _needs_root()
    _needs("mkfs.ext4", "losetup")
    try:
        with open(image, "wb") as file:
            file.truncate(megabytes * MB)
        _command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", 0, image)
        yield image
    finally:
        image.unlink(missing_ok=True)


@contextmanager
def _bad_disk(scene: Scene, pair: ModelPair, victim: str) -> Iterator[Path]:
    """A file system with the model's files, whose blocks from the middle of file `victim` on cannot be read."""
    _needs("filefrag")
    size = sum(path.stat().st_size for path in pair.qdq.parent.iterdir()) // MB
    with _ext4_image(scene.folder / "image", 2 * size + 16) as image:
        with _mounted(scene.folder / "disk", "-o", "loop", image) as folder:
            # The victim last, so that it lies behind what is to stay readable.
            for path in sorted(pair.qdq.parent.glob("qdq*"), key=lambda path: path.name == victim):
                shutil.copy(path, folder)
            os.sync()
            out = subprocess.run(
                ["filefrag", "-v", f"-b{_PAGE}", str(folder / victim)], capture_output=True, text=True, check=True
            ).stdout
        extents = [line.split(":") for line in out.splitlines() if line.strip()[:1].isdigit()]
        blocks = [(int(e[2].split("..")[0]), int(e[3])) for e in extents]
        first, length = max(blocks)
        with _mounted(scene.folder / "disk", "-o", "ro,loop", image) as folder:
            os.truncate(image, (first + length // 2) * _PAGE)
            yield folder


# ---- rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A row: what is broken, how, at which stage of a load, and the loads that meet it."""

    name: str
    how: str
    stage: str
    run: Callable[[Scene], list[Verdict]]
    quick: bool = False


FAULTS: list[Fault] = []


def _row(name: str, how: str, stage: str, quick: bool = False) -> Callable[[Callable[[Scene], list[Verdict]]], Any]:
    def add(run: Callable[[Scene], list[Verdict]]) -> Callable[[Scene], list[Verdict]]:
        FAULTS.append(Fault(name, how, stage, run, quick))
        return run

    return add


def _both_routes(scene: Scene, spill: Path, **changes: Any) -> list[Verdict]:
    results = scene.results_of(scene.k_major)
    return [
        scene.compare(scene.job(spill_dir=str(spill), loader=loader, **changes), results, spill=spill)
        for loader in scene.loaders
    ]


@_row("ENOSPC", "spill directory on a 1 MB tmpfs", "reserving", quick=True)
def _small_tmpfs(scene: Scene) -> list[Verdict]:
    with _tmpfs(scene, "1m") as spill:
        return _both_routes(scene, spill)


@_row("ENOSPC, full disk", "spill directory on a full loop-mounted ext4", "reserving")
def _full_ext4(scene: Scene) -> list[Verdict]:
    with _ext4_image(scene.folder / "image", 8) as image, _mounted(scene.folder / "disk", "-o", "loop", image) as spill:
        _fill(spill)
        return _both_routes(scene, spill)


@_row("ENOSPC when writing", "1 MB tmpfs; the reservation is made a promise", "packing", quick=True)
def _overpromised(scene: Scene) -> list[Verdict]:
    with _tmpfs(scene, "1m") as spill:
        return _both_routes(scene, spill, breaks="overpromise")


@_row("ENOSPC later", "tmpfs is filled while a session lives, then a second load", "reserving", quick=True)
def _filled_later(scene: Scene) -> list[Verdict]:
    with _tmpfs(scene, "40m") as spill:
        results = scene.results_of(scene.k_major)
        return [scene.compare(scene.job(spill_dir=str(spill), breaks="fill later", again=True), results, spill=spill)]


@_row("EFBIG", "RLIMIT_FSIZE of 100 kB", "reserving", quick=True)
def _small_files(scene: Scene) -> list[Verdict]:
    return _both_routes(scene, scene.spill, breaks="file size", value=100_000)


@_row("SIGXFSZ", "RLIMIT_FSIZE of 100 kB and the signal's default action", "reserving", quick=True)
def _deadly_files(scene: Scene) -> list[Verdict]:
    return _both_routes(scene, scene.spill, breaks="file size, deadly", value=100_000)


@_row("EIO, packed weights", "loop-mounted ext4, image cut off within the external data", "packing")
def _bad_packed(scene: Scene) -> list[Verdict]:
    return _on_bad_disk(scene, scene.k_major, "qdq.onnx.data")


@_row("EIO, weights in place", "loop-mounted ext4, image cut off within the external data", "initialization")
def _bad_in_place(scene: Scene) -> list[Verdict]:
    return _on_bad_disk(scene, scene.n_major, "qdq.onnx.data")


@_row("EIO, the model's file", "loop-mounted ext4, image cut off within it", "opening, packing")
def _bad_inline(scene: Scene) -> list[Verdict]:
    return _on_bad_disk(scene, scene.inline, "qdq.onnx")


def _on_bad_disk(scene: Scene, pair: ModelPair, victim: str) -> list[Verdict]:
    results = scene.results_of(pair)
    with _bad_disk(scene, pair, victim) as folder:
        job = scene.job(model=str(folder / "qdq.onnx"))
        return [scene.compare(replace(job, loader=loader), results) for loader in scene.loaders]


@_row("EIO, spill file", "64 MB ext4, loop-mounted from an image on a 12 MB tmpfs; pages go", "packing")
def _bad_spill(scene: Scene) -> list[Verdict]:
    with ExitStack() as undo:
        image = undo.enter_context(_ext4_image(undo.enter_context(_tmpfs(scene, "12m")) / "image", 64))
        spill = undo.enter_context(_mounted(scene.folder / "disk", "-o", "loop", image))
        return _both_routes(scene, spill, breaks="write back")


@_row("EMFILE", "RLIMIT_NOFILE, room for 0 to 12 descriptors", "every one that opens a file")
def _few_descriptors(scene: Scene) -> list[Verdict]:
    results = scene.results_of(scene.k_major, scene.n_major)
    return [
        scene.compare(scene.job(pair, loader=loader, breaks="descriptors", value=value), results)
        for pair, loader in scene.contenders
        for value in range(13)
    ]


@_row("read-only directory", "tmpfs mounted read-only", "reserving", quick=True)
def _read_only(scene: Scene) -> list[Verdict]:
    with _tmpfs(scene, "64m", "ro") as spill:
        return _both_routes(scene, spill)


@_row("missing directory", "spill_dir does not exist", "reserving", quick=True)
def _missing(scene: Scene) -> list[Verdict]:
    return _both_routes(scene, scene.folder / "nowhere")


@_row("directory is a file", "spill_dir is a file", "reserving", quick=True)
def _is_a_file(scene: Scene) -> list[Verdict]:
    file = scene.folder / "file"
    file.write_bytes(b"")
    return _both_routes(scene, file)


@_row("TMPDIR unusable", "TMPDIR is a file, or missing", "reserving")
def _bad_tmpdir(scene: Scene) -> list[Verdict]:
    results = scene.results_of(scene.k_major)
    file = scene.folder / "file"
    file.write_bytes(b"")
    return [
        scene.compare(scene.job(spill_dir=None, loader=loader), results, temporary=temporary)
        for temporary in (file, scene.folder / "nowhere")
        for loader in scene.loaders
    ]


@_row("no permission", "spill_dir of mode 0700 of another user", "reserving", quick=True)
def _no_permission(scene: Scene) -> list[Verdict]:
    _needs_other_users()
    closed = scene.folder / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    return _both_routes(scene, closed, uid=_UNUSED_UID)


@_row("unsafe directory", "spill_dir that others can write to, not sticky", "naming", quick=True)
def _unsafe(scene: Scene) -> list[Verdict]:
    unsafe = scene.folder / "unsafe"
    unsafe.mkdir(exist_ok=True)
    unsafe.chmod(0o777)
    return _both_routes(scene, unsafe)


@_row("RLIMIT_AS", "what is mapped after the imports and 0 to 384 MB; stock with up to 144 MB less", "all of them")
def _few_addresses(scene: Scene) -> list[Verdict]:
    return _ladder(scene, "addresses", range(0, 400 * MB, 16 * MB), _ADDRESS_SLACK)


@_row("RLIMIT_DATA", "what is used after the imports and 0 to 192 MB; stock with up to 32 MB less", "all of them")
def _little_data(scene: Scene) -> list[Verdict]:
    return _ladder(scene, "data", range(0, 200 * MB, 8 * MB), _DATA_SLACK)


def _ladder(scene: Scene, breaks: str, values: Sequence[int], slack: Sequence[int]) -> list[Verdict]:
    results = scene.results_of(scene.k_major, scene.n_major)
    return [
        scene.compare(
            scene.job(pair, loader=loader, breaks=breaks, value=value),
            results,
            tries=_TRIES,
            slack=slack,
            alike=_MEMORY_ERRORS,
        )
        for pair, loader in scene.contenders
        for value in values
    ]


@contextmanager
def _control_group(controller: str) -> Iterator[Path]:
    """A control group of our own, below the one this process is in."""
    _needs_root()
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mine = next((path for _, names, path in entries if (unified and not names) or controller in names.split(",")), None)
    parent = Path("/sys/fs/cgroup") / ("" if unified else controller) / (mine or "/").lstrip("/")
    group = parent / f"ort-qdq-fault-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Skipped(f"no control groups here: {error}") from None
    try:
        yield group
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:  # processes that have ended are counted a little longer
                time.sleep(0.05)


@_row("memory cgroup", "limit of 0 to 160 MB above what the group has after the imports", "all of them")
def _small_group(scene: Scene) -> list[Verdict]:
    return _in_group(scene, "memory", ("memory.limit_in_bytes", "memory.max"), range(0, 160 * MB, 8 * MB))


@_row("pids cgroup", "room for 0 to 8 threads", "starting threads", quick=False)
def _few_pids(scene: Scene) -> list[Verdict]:
    return _in_group(scene, "pids", ("pids.max",), range(9))


def _in_group(scene: Scene, controller: str, limits: Sequence[str], values: Sequence[int]) -> list[Verdict]:
    results = scene.results_of(scene.k_major, scene.n_major)
    verdicts = []
    for pair, loader in scene.contenders:
        for value in values:
            with _control_group(controller) as group:
                limit = next((name for name in limits if (group / name).exists()), None)
                if limit is None:
                    raise Skipped(f"no {controller} controller here")

                def unlimited(file: Path = group / limit) -> None:
                    file.write_text("-1" if file.name == "memory.limit_in_bytes" else "max")

                job = scene.job(pair, loader=loader, breaks="group", value=value, paths=(str(group), limit))
                verdicts.append(scene.compare(job, results, tries=_TRIES, restore=unlimited))
    return verdicts


@_row("no more threads", "RLIMIT_NPROC as an ordinary user, room for 0 to 6; stock with up to 4 less", "starting threads")
def _few_threads(scene: Scene) -> list[Verdict]:
    _needs_other_users()
    results = scene.results_of(scene.k_major, scene.n_major)
    return [
        scene.compare(
            scene.job(pair, loader=loader, breaks="threads", value=value, uid=_UNUSED_UID, threads=threads),
            results,
            slack=range(1, 5),  # the thread that trims, and those that have packed and are not quite gone
        )
        for pair, loader in scene.contenders
        for threads in (1, 3)
        for value in range(7)
    ]


@_row("SIGINT while packing", "from the progress callback, then a second load", "packing", quick=True)
def _interrupted_packing(scene: Scene) -> list[Verdict]:
    return [_interrupted(scene, scene.job(loader=loader, breaks="interrupt packing")) for loader in scene.loaders]


@_row("SIGINT in initialization", "0 to 40 ms after it began, then a second load", "initialization", quick=False)
def _interrupted_initialization(scene: Scene) -> list[Verdict]:
    return [
        _interrupted(scene, scene.job(pair, loader=loader, breaks="interrupt initialization", value=value))
        for pair, loader in scene.contenders
        for value in (0, 5, 10, 20, 40)
    ]


def _interrupted(scene: Scene, job: Job) -> Verdict:
    """KeyboardInterrupt must come out, and the next load in the same process must be as good as any."""
    results = scene.results_of(scene.k_major, scene.n_major)
    watched = [scene.spill, scene.temporary, Path(job.model).parent]
    before = _listing(watched)
    ours = scene.run(replace(job, again=True))
    left = _settled_listing(watched, before)
    good = ours.error == "KeyboardInterrupt" and ours.again in results and not ours.warnings and not ours.left
    problem = "" if good else f"{ours}"
    return Verdict("KeyboardInterrupt, then a session", problem or (f"left: {left}" if left else ""), len(left))


@_row("SIGTERM", "default action, from the progress callback", "packing", quick=True)
def _terminated(scene: Scene) -> list[Verdict]:
    verdicts = []
    for loader in scene.loaders:
        before = _listing([scene.spill, scene.temporary])
        ours = scene.run(scene.job(loader=loader, breaks="terminate packing"))
        left = _settled_listing([scene.spill, scene.temporary], before)
        problem = "" if ours.died == "killed by SIGTERM" and not left else f"{ours.short}, left {left}"
        verdicts.append(Verdict("ended by SIGTERM", problem, len(left)))
    return verdicts


# ---- signals at random moments ---------------------------------------------------------------------


def _send_during_load(scene: Scene, job: Job, number: int, after: float) -> tuple[Outcome, bool]:
    """Send a signal so many seconds after the load has begun; the outcome, and whether the load was still going on."""
    process = _start(replace(job, wait=True), scene.temporary, scene.home)
    assert process.stdout is not None
    assert process.stdin is not None
    if process.stdout.readline().strip() != "ready":
        return _finish(process), False
    process.stdin.write("\n")
    process.stdin.flush()
    time.sleep(after)
    process.send_signal(number)
    try:
        out, messages = process.communicate(timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(died="hangs"), True
    lines = out.strip().splitlines()
    stages = [line for line in lines if not line.startswith("{")]
    return replace(_outcome(process, out, messages), stage=stages[-1] if stages else "open"), _LOADED not in stages


def _load_seconds(scene: Scene, job: Job) -> float:
    """How long the load takes in a process that has imported everything."""
    process = _start(replace(job, wait=True), scene.temporary, scene.home)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    start = time.perf_counter()
    process.stdin.write("\n")
    process.stdin.flush()
    while process.stdout.readline().strip() not in (_LOADED, ""):
        pass
    seconds = time.perf_counter() - start
    _finish(process)
    return seconds


def strike(scene: Scene, job: Job, number: int, count: int) -> list[Verdict]:
    """Loads that meet the signal at moments spread over their whole length."""
    dice = random.Random(count)
    # A little more, as none takes exactly as long as another.
    seconds = 1.2 * median(_load_seconds(scene, job) for _ in range(3))
    verdicts = []
    watched = [scene.spill, scene.temporary, Path(job.model).parent]
    for strike in range(count):
        before = _listing(watched)
        ours, during = _send_during_load(scene, job, number, (strike + dice.random()) / count * seconds)
        left = _settled_listing(watched, before)
        expected = "killed by SIGKILL" if number == signal.SIGKILL else "KeyboardInterrupt"
        ended = not during or expected in (ours.died, ours.error)
        problem = "" if ended else f"{ours.short} {ours.messages[-300:]}"
        if left:
            problem = problem or f"left in stage {ours.stage}: {sorted(left)}"
            for path in left:
                os.unlink(path)
        verdicts.append(Verdict(f"in {ours.stage}" if during else "after the load", problem, len(left), ours.stage))
    return verdicts


def _settled_listing(watched: Sequence[Path], before: set[str], seconds: float = 2.0) -> set[str]:
    """What is there that was not, once whoever cleans up had the time for it."""
    end = time.monotonic() + seconds
    while (left := _listing(watched) - before) and time.monotonic() < end:
        time.sleep(0.01)
    return left


@_row("SIGINT at random moments", "Python's own handler", "all of them")
def _interrupts(scene: Scene) -> list[Verdict]:
    return [
        verdict
        for loader in scene.loaders
        for verdict in strike(scene, scene.job(loader=loader), signal.SIGINT, max(1, scene.kills // 5))
    ]


@_row("kill -9, borrowed", "at random moments", "all of them")
def _kills_borrowed(scene: Scene) -> list[Verdict]:
    return strike(scene, scene.job(), signal.SIGKILL, scene.kills)


@_row("kill -9, by path", "at random moments", "all of them")
def _kills_by_path(scene: Scene) -> list[Verdict]:
    if "by path" not in scene.loaders:
        raise Skipped("no directory is safe here")
    return strike(scene, scene.job(loader="by path"), signal.SIGKILL, scene.kills)


# ---- files that change -----------------------------------------------------------------------------


def _changing(scene: Scene, kind: str, moment: str) -> list[Verdict]:
    """Whose content changes: external data that is packed, data that is used in place, and the model's own file."""
    verdicts = []
    cases = [(scene.k_major, scene.k_major_other, "qdq.onnx.data"), (scene.n_major, scene.n_major_other, "qdq.onnx.data")]
    for pair, other, victim in cases:
        if moment == "while packing" and pair is scene.n_major:
            continue
        results = scene.results_of(pair, other)
        for loader in scene.loaders:
            work = scene.folder / "changing"
            restore = partial(_fresh_copy, pair, work)
            paths = (kind, moment, str(work / victim), str(other.qdq.with_name(victim)))
            job = scene.job(model=str(work / "qdq.onnx"), loader=loader, breaks="source", paths=paths)
            before = _listing([scene.spill, scene.temporary])
            restore()
            ours = scene.run(job)
            left = _settled_listing([scene.spill, scene.temporary], before)
            # Stock meets the file as it is now.
            stock = ours if ours.result else scene.run(Job(job.model, "stock"))
            verdicts.append(judge(ours, stock, results, left))
            shutil.rmtree(work)
    return verdicts


def _fresh_copy(pair: ModelPair, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in pair.qdq.parent.glob("qdq*"):
        shutil.copy(path, folder)


for _kind in _CHANGES:
    for _moment in _MOMENTS:
        _run = partial(_changing, kind=_kind, moment=_moment)
        _name = f"source {_kind} {_moment}"
        FAULTS.append(Fault(_name, "external data of the model", _moment, _run, _kind in _QUICK_CHANGES))


# ---- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A fault and its verdicts, or why there are none."""

    fault: Fault
    verdicts: list[Verdict] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """What is wrong."""
        return [verdict.problem for verdict in self.verdicts if verdict.problem]

    @property
    def outcome(self) -> str:
        """What became of the loads, in words."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        counts = Counter(f"FAIL: {verdict.problem}" if verdict.problem else verdict.what for verdict in self.verdicts)
        return "; ".join(f"{count} x {what}" if len(self.verdicts) > 1 else what for what, count in counts.items())

    @property
    def cells(self) -> list[str]:
        """The row of the table."""
        left = "" if self.skipped else str(sum(verdict.left for verdict in self.verdicts) or "nothing")
        return [self.fault.name, self.fault.how, self.fault.stage, self.outcome.replace("|", "/"), left]


def run_fault(fault: Fault, scene: Scene) -> Row:
    """Have one row's loads done and judged."""
    start = time.perf_counter()
    try:
        verdicts = fault.run(scene)
    except Skipped as reason:
        return Row(fault, skipped=str(reason))
    return Row(fault, verdicts, seconds=time.perf_counter() - start)


def _table(rows: Sequence[Row]) -> str:
    head = ["fault", "how it is injected", "where", "outcome", "left on disk"]
    lines = [head, ["---"] * len(head), *(row.cells for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="faults whose name matches this pattern")
    parser.add_argument("--kills", type=int, default=100, help="of each route; a fifth as many interrupts")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    parser.add_argument("--quick", action="store_true", help="tiny models, and rows of seconds only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _as_root_of_a_namespace() -> None:
    """Start anew as root of a user namespace, where some of the mounts are allowed, if that can be had."""
    if os.geteuid() == 0 or shutil.which("unshare") is None:
        return
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0:
        os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "conformance.faults", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a row fails."""
    args = _arguments(argv)
    if args.child:
        raw = json.loads(args.child)
        outcome = _child(Job(**{**raw, "paths": tuple(raw["paths"])}))
        print(json.dumps(asdict(outcome)), flush=True)
        return 0
    if argv is None:
        _as_root_of_a_namespace()
    rows = []
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="fault-table-"))).resolve()
        folder.chmod(0o755)
        scene = Scene(folder, args.quick, args.kills)
        for fault in FAULTS:
            if not fnmatch.fnmatch(fault.name, args.only) or (args.quick and not fault.quick):
                continue
            rows.append(run_fault(fault, scene))
            print(f"{rows[-1].seconds:6.1f} s  {fault.name}: {rows[-1].outcome}", file=sys.stderr, flush=True)
    text = _table(rows)
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main())
