"""The examples of scale-out, as a user runs them: what comes out is what a plain session gives."""

import http.client
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ort_qdq_plugin.cli.demo_model import write_model
from tests.support import ROOT, stock

EXAMPLES = ROOT / "examples"
WORKERS = 4

# Runs a script that waits for any child (-1), as gunicorn does, and writes down how each ended: a signal's number as -15.
RECORDING = """
import os, runpy, sys
waited, ends = os.waitpid, open(sys.argv[1], "w")
def waitpid(child, options):
    ended, status = waited(child, options)
    if ended and child == -1:
        print(os.waitstatus_to_exitcode(status), file=ends, flush=True)
    return ended, status
os.waitpid = waitpid
del sys.argv[:2]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    (tmp_path / "tmp").mkdir()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Ray has sockets in its folder, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="r") as short:
        yield {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path / "tmp"), "RAY_TMPDIR": short}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", k_major=True)


def batches_and_results(model: Path) -> tuple[np.ndarray, np.ndarray]:
    """Some batches, and what a plain session gives for them."""
    session = stock(str(model))
    (x,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 2 for size in x.shape]
    batches = np.random.default_rng(5).standard_normal((6, *shape)).astype(np.float32)
    return batches, np.stack([session.run(None, {x.name: batch})[0] for batch in batches])


def run(name: str, model: Path, environment: dict[str, str], tmp_path: Path, *arguments: str) -> list[list[str]]:
    """Run an example on some batches, compare what comes out; the lines of its table."""
    inputs, expected = batches_and_results(model)
    np.save(tmp_path / "in.npy", inputs)
    given = ["--model", str(model), "--input", str(tmp_path / "in.npy"), "--output", str(tmp_path / "out.npy"), *arguments]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *given], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    table = done.stdout.splitlines()[-2 if name == "ray_actors.py" else -1 :]
    # A node's name may have spaces; columns are at least two apart from it.
    return [re.split(r"  +", line.strip()) for line in table]


@pytest.mark.slow
def test_spawned_workers(model: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (line,) = run("spawned_workers.py", model, environment, tmp_path, "--workers", str(WORKERS))
    _node, workers, packed, mapped, *_ = line
    assert (int(workers), int(packed), int(mapped)) == (WORKERS, 1, WORKERS - 1)
    assert not list((tmp_path / "tmp").glob("ort-qdq-example-*"))


@pytest.mark.scale_out
@needs("ray")
def test_ray_actors(model: Path, environment: dict[str, str], tmp_path: Path) -> None:
    lines = run("ray_actors.py", model, environment, tmp_path, "--nodes", "2", "--actors", "2")
    assert [line[0] for line in lines] == ["node-0", "node-1"]
    for _node, actors, packed, mapped, *_ in lines:
        assert (int(actors), int(packed), int(mapped)) == (2, 1, 1)


PREFORK = pytest.mark.parametrize(("arguments", "cache"), [([], "used"), (["--preload"], "made")])


@pytest.mark.scale_out
@needs("gunicorn")
@PREFORK
def test_prefork_server(model: Path, environment: dict[str, str], tmp_path: Path, arguments: list[str], cache: str) -> None:
    inputs, expected = batches_and_results(model)
    with server(model, environment, tmp_path, *arguments) as (port, process):
        results = [post(port, batch) for batch in inputs]
        facts = json.loads(exchange(port, "GET", b"")[1])
        status, message = exchange(port, "POST", b"no array at all")
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert np.array_equal(np.stack(results), expected)
    assert facts["cache"] == cache
    assert ("onnxruntime_pybind" in maps) == (cache == "made")  # the process that forks has it only if it loads
    assert (status, b"Error" in message) == (400, True)
    log = (tmp_path / "log").read_text()
    assert len(re.findall(rf'session ready: .*"cache": "{cache}"', log)) == WORKERS
    assert "Traceback" not in log
    assert not list((tmp_path / "tmp").glob("ort-qdq-example-*"))


@pytest.mark.long
@pytest.mark.scale_out
@needs("gunicorn")
@PREFORK
def test_workers_end_each_time(
    model: Path, environment: dict[str, str], tmp_path: Path, arguments: list[str], cache: str
) -> None:
    for _ in range(20):
        with server(model, environment, tmp_path, *arguments) as (port, _):
            assert json.loads(exchange(port, "GET", b"")[1])["cache"] == cache


@contextmanager
def server(
    model: Path, environment: dict[str, str], tmp_path: Path, *arguments: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server, ready to answer: its port, and the process that forks. Afterwards all have ended, by exit code 0."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    # With ONNX Runtime's telemetry on, but for its file and what it would send: workers that miss its thread cannot end.
    variables = {"ORT_DISABLE_TELEMETRY": "0", "https_proxy": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    script = [sys.executable, "-c", RECORDING, str(tmp_path / "ends"), str(EXAMPLES / "prefork_server.py")]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*script, "--model", str(model), *arguments, "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}"],
            env={**environment, **variables},
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 60
        while (tmp_path / "log").read_text().count("session ready") < WORKERS:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        # gunicorn kills workers that have not ended within 30 seconds, and does not wait for them.
        assert (tmp_path / "ends").read_text().split() == ["0"] * WORKERS, (tmp_path / "log").read_text()


def post(port: int, batch: np.ndarray) -> np.ndarray:
    body = io.BytesIO()
    np.save(body, batch)
    status, answer = exchange(port, "POST", body.getvalue())
    assert status == 200, answer
    result: np.ndarray = np.load(io.BytesIO(answer))
    return result


def exchange(port: int, method: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, "/", body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
