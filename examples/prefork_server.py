"""A pre-fork HTTP server: the model is packed, or even loaded, before the workers are forked.

    pip install '.[cpu,gunicorn]'
    python examples/prefork_server.py [--preload] [--workers 4] [--bind 127.0.0.1:8000] [--model MODEL]
    curl --data-binary @batch.npy http://127.0.0.1:8000/ --output result.npy

A process of its own fills the cache (`ort-qdq warm`) and ends. Each worker creates its session once it runs, and logs what
that took. GET / tells what the worker that answers has. The process that forks never imports ONNX Runtime, which would start
a thread there that forked workers do not have: they would hang or crash when they end and wait for it.

With --preload, the process that forks creates the session, and all workers run that one. They start at once, and have one
copy of the weights. A run takes one core then: a forked child has none of the session's other threads. ONNX Runtime's
telemetry is off then, and so it starts no thread for it.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from common import Work, Worker, parser, work
from gunicorn.app.base import BaseApplication

__all__ = ["Server", "main"]

_MAX_BYTES = 64 << 20  # of a request

_worker: Worker


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn with workers that have a session each, or all the same."""

    def __init__(self, asked: Work, **settings: Any) -> None:
        self._asked = asked
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Take the settings."""
        for name, value in {**self._settings, "post_worker_init": self._begin}.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[..., Iterable[bytes]]:
        """The WSGI application; with `preload_app`, before the fork."""
        if self.cfg.preload_app:
            self._create_session(threads=1)
        return answer

    def _begin(self, worker: Any) -> None:
        """Make a worker ready."""
        if not self.cfg.preload_app:
            self._create_session()
        worker.log.info("session ready: %s", json.dumps(_worker.facts()))

    def _create_session(self, threads: int = 0) -> None:
        global _worker
        _worker = Worker(self._asked.model, str(self._asked.folder), self._asked.share, threads=threads)


def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Run the batch that was posted, a .npy file, and answer with the result, another one."""
    if environ["REQUEST_METHOD"] != "POST":
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(_worker.facts()).encode()]
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if not 0 < length <= _MAX_BYTES:
        start_response("413 Content Too Large", [("Content-Type", "text/plain")])
        return [f"a request has 1 to {_MAX_BYTES} bytes\n".encode()]
    try:
        result = _worker.run(np.load(io.BytesIO(environ["wsgi.input"].read(length)), allow_pickle=False))
    except Exception as error:  # whatever the request was: it is the client's to know
        start_response("400 Bad Request", [("Content-Type", "text/plain")])
        return [f"{type(error).__name__}: {error}\n".encode()]
    body = io.BytesIO()
    np.save(body, result)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [body.getvalue()]


def _warm(asked: Work) -> None:
    """Fill the cache, in a process of its own. That has its own memory too, which ends with it."""
    command = [sys.executable, "-m", "ort_qdq_plugin", "warm", asked.model, "--dir", str(asked.folder)]
    if code := subprocess.run([*command, *["--share-weights"] * asked.share]).returncode:
        sys.exit(code)  # it has said why


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted."""
    described = parser("A pre-fork server: the model is packed, or loaded, before the workers are forked.")
    described.add_argument("--workers", type=int, default=4, help="processes (default 4)")
    described.add_argument("--bind", default="127.0.0.1:8000", help="address and port (default 127.0.0.1:8000)")
    described.add_argument("--preload", action="store_true", help="create the session before the workers are forked")
    given = described.parse_args(arguments)
    with work(given) as asked:
        if given.preload:
            os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # whatever it was: here the workers depend on it
        else:
            _warm(asked)
        Server(asked, bind=given.bind, workers=given.workers, preload_app=given.preload).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
