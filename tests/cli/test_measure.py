"""What a process that is measured does, and which package it is that it loads a model with."""

import os
from pathlib import Path

import numpy as np
import pytest

from ort_qdq_plugin.cli.measure import Job, job_for, measured, start
from tests.lacking import has
from tests.support import save, stack

OTHER = """
import onnxruntime
__version__ = "other"
class Options:
    def __init__(self, **options): self.options = options
class Report:
    fused = (1, 2, 3)
    def to_dict(self): return {"told by": __file__}
    def summary(self): return "the other package's"
def create_session(model, settings, providers, options):
    assert options.options == {"strict": True}
    return onnxruntime.InferenceSession(model, settings, providers)
def report_of(session): return Report()
"""
ENGINE = """
import os
import numpy as np
def loader(job):
    return lambda job: ((lambda inputs: [np.array(os.environ["ORT_QDQ_PLUGIN"]), inputs["x"] * 2]), None)
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_for(str(save(stack(2, 256), tmp_path, "external")), tmp_path / "inputs.npz", {"x": (3, 256)})


def test_the_package_of_another_folder(job: Job, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "ort_qdq_plugin" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text(OTHER)
    run = measured(job._replace(options={"strict": True}, package=str(package.parents[1])))
    assert (run.report, run.fused, run.facts) == ("the other package's", 3, {"told by": str(package)})
    ours = measured(job._replace(options={"strict": True}))
    assert (len(ours.facts["fused"]), ours.facts["route"], ours.fused) == (2, "borrowed", 2)


def test_what_a_load_takes(job: Job) -> None:
    run = measured(job._replace(options={}, twice=True, beside=({"accuracy_level": 0},), runs=(4, 4, 0.0)))
    assert 0 < run.imported < run.init
    assert 0 < run.again < run.init
    assert 0 < run.import_cpu < run.cpu
    assert run.faults > 100 or not has("page faults")
    assert len(run.beside) == 1
    assert min(run.steady, *run.beside) > 0
    assert run.run_cpu > 0 or os.name == "nt"  # which counts it in steps of 16 ms
    assert 0 < run.before.anonymous < run.after.anonymous
    assert 10e6 < run.load_peak <= run.peak
    stock = measured(job)
    assert (stock.imported < 0.01, stock.again, stock.beside, stock.report, stock.facts) == (True, 0.0, [], "", {})


def test_a_model_as_bytes(job: Job, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="External data path"):
        measured(job._replace(as_bytes=True))
    inline = str(save(stack(2, 256), tmp_path, "file", "inline"))
    assert measured(job._replace(model=inline, options={}, as_bytes=True)).facts["route"] == "borrowed"


def test_another_engine_and_the_variable_that_is_not_set(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_QDQ_PLUGIN", "1")
    (tmp_path / "engine.py").write_text(ENGINE)
    run = measured(job._replace(engine=str(tmp_path / "engine.py"), outputs=str(tmp_path / "outputs.npz")))
    assert run.report == ""
    with np.load(job.inputs) as inputs, np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs["arr_0"] == ""
        np.testing.assert_array_equal(outputs["arr_1"], inputs["arr_0"] * 2)


def test_a_session_that_is_held(job: Job) -> None:
    process = start(job._replace(options={}, hold=True))
    assert process.stdout is not None
    assert process.stdout.readline().rstrip() == b"ready"
    assert process.poll() is None
    out, _ = process.communicate(timeout=60)
    assert b'"fused": 2' in out
    assert process.returncode == 0


def test_what_a_load_that_fails_is_told(job: Job, tmp_path: Path) -> None:
    """The whole error of ONNX Runtime, in one line, and what this package notes."""
    with pytest.raises(RuntimeError, match=r"^InvalidArgument: .*Got invalid dimensions.*Please fix either the inputs"):
        measured(job._replace(inputs=str(wrong_inputs(tmp_path))))
    os.truncate(tmp_path / "model.data", 1000)
    with pytest.raises(RuntimeError, match=r"^Fail: .* ort-qdq-plugin: external data .*model.data has 1000 bytes"):
        measured(job._replace(options={}))


def wrong_inputs(folder: Path) -> Path:
    np.savez(folder / "wrong.npz", np.zeros((3, 255), np.float32))
    return folder / "wrong.npz"
