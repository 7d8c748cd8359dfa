"""Forks: what they wait for, and what happens in the child."""

from tests.support import python

FORKS = """
import os, threading, time
from ort_qdq_plugin.system.forks import fork_lock

held, done = threading.Event(), threading.Event()

def work():
    with fork_lock:
        held.set()
        time.sleep(0.3)
        done.set()

thread = threading.Thread(target=work)
thread.start()
held.wait()
child = os.fork()
assert done.is_set()
# Both processes have given it back.
other = threading.Thread(target=work, daemon=True)
other.start()
other.join(10)
if not child:
    os._exit(other.is_alive())
assert not other.is_alive()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
"""


def test_a_fork_waits_for_what_must_not_be_interrupted() -> None:
    done = python(FORKS)
    assert done.returncode == 0, done.stderr


OWN = """
import os
from ort_qdq_plugin.system.forks import fork_lock
with fork_lock:
    child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os._exit(0)
"""


def test_who_holds_a_fork_up_may_fork() -> None:
    done = python(OWN)
    assert done.returncode == 0, done.stderr
