"""What all tests find: interrupts that work, and processes that load models which nobody trusts."""

import gc
import os
import signal
import traceback
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from conformance.fuzz.judge import Judge
from conformance.fuzz.worker import Worker
from tests.lacking import NEEDS, grp, has, lacking, lacking_in

settings.register_profile("emulated", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if "SLOWER" in os.environ:
    settings.load_profile("emulated")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for need in (need for marker in item.iter_markers("needs") for need in marker.args):
            if not has(need):
                item.add_marker(pytest.mark.skip(reason=NEEDS[need][1]))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Modules that import what the system lacks are skipped."""
    report = yield
    if report.failed and (reason := lacking_in(str(report.longrepr).replace("\nE   ", "\n"))):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {reason}")
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup() -> Generator[None]:
    return (yield from _skipped_if_lacking())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    return (yield from _skipped_if_lacking())


def _skipped_if_lacking() -> Generator[None]:
    """What runs meanwhile is skipped if it fails for what the system lacks."""
    try:
        return (yield)
    except Exception as error:
        if reason := lacking(error):
            # What the test has open ends with it.
            traceback.clear_frames(error.__traceback__)
            pytest.skip(reason)
        raise


@pytest.fixture(scope="session", autouse=True)
def _links() -> Iterator[None]:
    # Where there are no links, some systems make none without saying so.
    with pytest.MonkeyPatch.context() as patched:
        if not has("symbolic links"):
            patched.setattr(os, "symlink", _no_link)
        yield


def _no_link(*_: object, **__: object) -> None:
    raise NotImplementedError(NEEDS["symbolic links"][1])


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    # Many tests collect garbage to see what it lets go. What thousands of collected tests, and pytest's reports of them, are
    # made of is never garbage, and looking through it takes a tenth of a second each time.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    # A shell has what it runs in the background ignore them, and the processes that tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A directory for entries of the cache, which is not there yet."""
    return tmp_path / "cache"


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Path]:
    """A directory for spill files, in which nothing may be left."""
    folder = tmp_path / "spill"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture(scope="session")
def _counted() -> None:
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("measures memory as Linux counts it")


@pytest.fixture(scope="module")
def worker(_counted: None) -> Iterator[Worker]:
    with closing(Worker()) as worker:
        yield worker


@pytest.fixture(scope="module")
def judge(_counted: None) -> Iterator[Judge]:
    with closing(Judge()) as judge:
        yield judge


@pytest.fixture
def shared_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's group has other members."""
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_name="all", gr_mem=["you"]))
