"""A program that loads a model in one of several ways; tests add what it does with that."""

import pytest

__all__ = ["KINDS", "LOADS"]

KINDS = pytest.mark.parametrize("kind", ["memory", "file", "by path", "new entry", "entry", "shared entry"])

LOADS = """
import atexit, gc, os, sys, threading, time
import numpy as np
import onnxruntime as ort
from ort_qdq_plugin import Options, create_session, report_of
from ort_qdq_plugin.system.forks import fork_lock

folder, kind = sys.argv[1:3]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
if kind == "by path":
    options.add_provider("CPUExecutionProvider", {})
cached = dict(cache_dir=f"{folder}/cache", share_weights="shared" in kind) if "entry" in kind else {}
ours = Options(buffer="memory" if kind == "memory" else "file", spill_dir=folder, **cached)
strict = True

def load():
    session = create_session(f"{folder}/model.onnx", options, options=ours)
    assert not strict or report_of(session).route != "stock"
    return session

def run(session):
    return session.run(None, {"x": np.ones((3, session.get_inputs()[0].shape[1]), np.float32)})[0]

def close_all():
    # Not while another thread starts a process: the standard library closes pipes by their numbers.
    with fork_lock:
        os.closerange(3, 1000)
    own = []
    for number in range(40):
        own.append(os.open(f"{folder}/own-{number}", os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        os.write(own[-1], b"mine")
    return own

def check(own, where=""):
    for number, descriptor in enumerate(own):
        assert os.path.samestat(os.fstat(descriptor), os.stat(f"{folder}/own-{number}")), where
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert os.read(descriptor, 100) == b"mine", where
"""
