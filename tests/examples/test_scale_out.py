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
WORKERS = 3
_GRACE_SECONDS = 25  # gunicorn kills workers that have not ended within 30


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


@pytest.mark.long  # `.ci/run examples` runs it
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


@pytest.mark.scale_out
@needs("gunicorn")
@pytest.mark.parametrize(("arguments", "cache"), [([], "used"), (["--preload"], "made")])
def test_prefork_server(model: Path, environment: dict[str, str], tmp_path: Path, arguments: list[str], cache: str) -> None:
    inputs, expected = batches_and_results(model)
    with server(model, environment, tmp_path, *arguments) as port:
        results = [post(port, batch) for batch in inputs]
        facts = json.loads(exchange(port, "GET", b"")[1])
        status, message = exchange(port, "POST", b"no array at all")
    assert np.array_equal(np.stack(results), expected)
    assert facts["cache"] == cache
    assert (status, b"Error" in message) == (400, True)
    log = (tmp_path / "log").read_text()
    assert len(re.findall(rf'session ready: .*"cache": "{cache}"', log)) == WORKERS
    assert "Traceback" not in log
    # What the master says of a worker that a signal has ended, or that has ended with an error.
    assert not re.findall(r"Worker \(pid:.*", log)
    assert not list((tmp_path / "tmp").glob("ort-qdq-example-*"))


@contextmanager
def server(model: Path, environment: dict[str, str], tmp_path: Path, *arguments: str) -> Iterator[int]:
    """The server, ready to answer; its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    # With the telemetry on, workers cannot end.
    variables = {name: value for name, value in environment.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, str(EXAMPLES / "prefork_server.py"), "--model", str(model), *arguments]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}"],
            env=variables,
            stdout=log,
            stderr=log,
        )
    try:
        end = time.monotonic() + 60
        while (tmp_path / "log").read_text().count("session ready") < WORKERS:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _GRACE_SECONDS
        assert process.wait(60) == 0
        assert time.monotonic() < end, "workers had to be killed"


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
