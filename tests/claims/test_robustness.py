"""robustness.md, and what SECURITY.md says of it."""

import os
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conformance.drawing.weight import Weight
from conformance.fuzz import worker
from ort_qdq_plugin import ModelError, Options, StockReason, create_session, inspect
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.load import plan
from tests.claims.registry import claim
from tests.support import (
    CPU,
    descriptors,
    external_tensor,
    linear,
    made_report,
    python,
    quiet,
    raised,
    result,
    save,
    settled_descriptors,
    stock,
)  # fmt: skip

PAGE = "docs/robustness.md"


def pointing_to(location: str, folder: Path) -> str:
    """A model whose weight is said to be there."""
    model = linear(Weight())
    external_tensor(model, "w", location=location, offset="0", length=str(128 * 64 // 2))
    return str(save(model, folder, "file"))


@claim(
    PAGE,
    "It refuses locations that ONNX Runtime refuses: outside the model's folder, also by links, and",
)
@claim(PAGE, "Devices and FIFOs are never opened. Links inside the folder are followed.")
@claim(
    "SECURITY.md",
    "a model makes it read a file outside the model's folder, open a device, or use memory or time without bound;",
)
def test_locations_of_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    weight = bytes(128 * 64 // 2)
    (tmp_path / "outside.data").write_bytes(weight)
    (folder / "inside.data").write_bytes(weight)
    (folder / "link_out").symlink_to(tmp_path / "outside.data")
    (folder / "link_in").symlink_to("inside.data")
    os.mkfifo(folder / "fifo")
    for location in ("../outside.data", str(tmp_path / "outside.data"), "link_out", "fifo", "/dev/zero"):
        path = pointing_to(location, folder)
        with suppress(ModelError, OSError):
            assert inspect(path, check=False).fused == ()
        if location != "fifo":  # for which stock waits
            assert raised(partial(create_session, path, quiet(), CPU)) == raised(partial(stock, path))
    for location in ("inside.data", "link_in"):
        assert len(inspect(pointing_to(location, folder)).fused) == 1


@claim(PAGE, "A model that is itself a link may use what lies beside its target, as in Hugging Face's cache.")
def test_models_that_are_links(large: str, tmp_path: Path) -> None:
    for suffix in (".onnx", ".data"):
        (tmp_path / "large").with_suffix(suffix).symlink_to(Path(large).with_suffix(suffix))
    session = create_session(tmp_path / "large.onnx", quiet(), CPU, options=Options(strict=True))
    assert len(made_report(session).fused) == 3


@claim(PAGE, "to 2 seconds of work and 256 MB for any model below 1 MB.")
def test_what_fuzzers_hold_inspect_to() -> None:
    assert (worker.MAX_SECONDS, worker.MAX_BYTES >> 20) == (2, 256)


@claim(
    PAGE,
    "Packed weights may be 16 times as large as the model's files, or 64 MB if that is more. Beyond this,",
)
@claim(
    "docs/troubleshooting.md",
    "| `PACKED_SIZE` | [a limit](robustness.md#models-that-nobody-trusts) for models that nobody trusts |",
)
def test_packed_weights_that_grow(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (plan._GROWTH, plan._GROWTH_BYTES) == (16, 64 << 20)
    monkeypatch.setattr(plan, "_GROWTH", 0)
    monkeypatch.setattr(plan, "_GROWTH_BYTES", 1000)
    assert made_report(create_session(small, quiet(), CPU)).stock_reason is StockReason.PACKED_SIZE


@claim(PAGE, "is shown as an escape such as `\\x1b`. Fields of a report have them as they are.")
def test_names() -> None:
    model = linear(Weight())
    model.graph.node[-1].name = "a\x1b[31m\nb"
    report = inspect(model.SerializeToString())
    assert report.fused[0].node == "a\x1b[31m\nb"
    assert "a\\x1b[31m\\nb" in str(report)


@claim(PAGE, "A session has no descriptor open, or one if it comes from the cache.")
def test_descriptors(large: str, tmp_path: Path) -> None:
    cached = Options(strict=True, cache_dir=tmp_path)
    create_session(large, quiet(), CPU, options=cached)
    wait_until_on_disk()
    for options, opened in ((Options(strict=True), 0), (cached, 1)):
        before = settled_descriptors()
        session = create_session(large, quiet(), CPU, options=options)
        assert descriptors() - before == opened
        del session


@claim(PAGE, "**Threads.** Sessions may be created, used and dropped by any number of threads")
def test_threads(large: str) -> None:
    settings, results = quiet(), list[np.ndarray]()

    def load() -> None:
        results.append(result(create_session(large, settings, CPU, options=Options(strict=True))))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(one, results[0]) for one in results)


FORKED = """
import os, sys
import numpy as np, onnxruntime as ort
from ort_qdq_plugin import Options, create_session
def made(mode, **more):
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.execution_mode = 2, mode
    for name, value in more.items():
        setattr(settings, name, value)
    return create_session(sys.argv[1], settings, ["CPUExecutionProvider"], options=Options(strict=True))
mode = ort.ExecutionMode
sessions = [made(mode.ORT_SEQUENTIAL), made(mode.ORT_PARALLEL), made(mode.ORT_PARALLEL, inter_op_num_threads=1)]
x = {"x": np.ones((2, 128), np.float32)}
wanted = sessions[0].run(None, x)[0]
child = os.fork()
def tried(call):
    try:
        return "same" if np.array_equal(call(), wanted) else "other"
    except RuntimeError:
        return "RuntimeError"
if child == 0:
    said = [tried(lambda: session.run(None, x)[0]) for session in sessions]
    said.append(tried(lambda: sessions[0].run_async(None, x, lambda *_: None, None)))
    sessions[1].set_providers(["CPUExecutionProvider"])
    said.append(tried(lambda: sessions[1].run(None, x)[0]))
    print(*said, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@claim(
    PAGE,
    "**What needs the parent's threads** raises `RuntimeError` in the child, where it would wait for ever: `run_async`,",
)
@claim(
    PAGE,
    "(unless `inter_op_num_threads` is 1). `set_providers` creates the child a native session of its own,",
)
@claim(
    "docs/how-it-works.md", "[In the child](robustness.md#load-then-fork), a session of the parent's raises `RuntimeError`"
)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_sessions_of_the_parent(small: str) -> None:
    done = python(FORKED, small, variables={"ORT_DISABLE_TELEMETRY": "1"})
    assert done.stdout.split() == ["same", "RuntimeError", "same", "RuntimeError", "same"], done.stderr
