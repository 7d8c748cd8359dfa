"""A program that closes all descriptors, as one that becomes a daemon does, and opens files of its own under their numbers:
at any place of a load, from a signal handler, or afterwards. Results stay right, and its files stay as they are."""

from pathlib import Path

import pytest

from tests.support import python, save, stack
from tests.withstands.loads import KINDS, LOADS

CLOSES = """
first = load()
wanted = run(first)
own = close_all()
second = load()
assert np.array_equal(run(first), wanted)
assert np.array_equal(run(second), wanted)
first.set_providers(["CPUExecutionProvider"])
assert np.array_equal(run(first), wanted)
del first, second
gc.collect()
check(own)
"""

CLOSES_WHILE_LOADING = """
import contextlib, shutil
import ort_qdq_plugin
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from tests.interrupting import at_place

PACKAGE = os.path.dirname(ort_qdq_plugin.__file__)


def within(path):
    return path == contextlib.__file__ or path.startswith(PACKAGE) and not path.startswith(f"{PACKAGE}/fusion/")

def anew():
    wait_until_on_disk()
    if is_new:
        shutil.rmtree(f"{folder}/cache", ignore_errors=True)

strict, is_new = False, kind.startswith("new")
wanted, own, sessions, number = run(load()), [], [], 1
anew()
while at_place(number, lambda: sessions.append(load()), within, lambda: own.extend(close_all())):
    session = sessions.pop()
    assert np.array_equal(run(session), wanted), number
    del session
    wait_until_on_disk()
    gc.collect()
    check(own, number)
    for descriptor in own:
        os.close(descriptor)
    own.clear()
    sessions.append(load())
    assert np.array_equal(run(sessions[-1]), wanted) and report_of(sessions.pop()).route != "stock", number
    anew()
    number += int(sys.argv[3])
print(number)
"""


# Its uploader closes files of its own, by their numbers.
QUIET = {"ORT_DISABLE_TELEMETRY": "1"}


@KINDS
def test_a_program_may_close_all_descriptors(tmp_path: Path, kind: str) -> None:
    """Those that it opens then have the numbers of others, and stay open when the sessions go."""
    save(stack(2, 128, element="int4"), tmp_path, "external")
    done = python(LOADS + CLOSES, tmp_path, kind, variables=QUIET)
    assert done.returncode == 0, done.stderr


@KINDS
@pytest.mark.parametrize("stride", [pytest.param(127, marks=pytest.mark.slow), pytest.param(31, marks=pytest.mark.long)])
def test_a_handler_may_close_all_descriptors_at_any_place(tmp_path: Path, kind: str, stride: int) -> None:
    """That load may go to stock ONNX Runtime; the next one does not."""
    save(stack(2, 128, element="int4"), tmp_path, "external")
    done = python(LOADS + CLOSES_WHILE_LOADING, tmp_path, kind, stride, timeout=600, variables=QUIET)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200
