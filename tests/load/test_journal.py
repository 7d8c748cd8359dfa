"""Who is told how far a load is: of every stage as it begins, and of bytes."""

import contextlib
import io
from pathlib import Path

import pytest

from ort_qdq_plugin import Options, create_session, export, warm
from ort_qdq_plugin.load.journal import shown, tell_stage
from tests.claims.pages import blocks
from tests.support import CPU, floating, made_report, save, stack, with_entries


class Told:
    """Progress, and the stages that it belongs to."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.bytes: dict[str, list[tuple[int, int]]] = {}

    def __call__(self, done: int, total: int) -> None:
        self.bytes.setdefault(self.stages[-1], []).append((done, total))

    def stage(self, name: str) -> None:
        self.stages.append(name)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save(stack(3, 128), tmp_path, "external"))


def completed(told: Told, *stages: str) -> bool:
    """Whether in these stages, and in no others, bytes were told, up to the last one."""
    assert all(done == sorted(done) for done in told.bytes.values())
    return list(told.bytes) == list(stages) and all(done[-1][0] == done[-1][1] > 0 for done in told.bytes.values())


def test_a_session_that_is_created(model: str, told: Told) -> None:
    report = made_report(create_session(model, providers=CPU, options=Options(progress=told)))
    assert [*dict.fromkeys(told.stages)] == [*report.seconds]
    assert told.stages[-1] == "create session"
    assert completed(told, "pack")


def test_a_model_that_is_left_to_stock(model: str, tmp_path: Path, told: Told) -> None:
    unfused = with_entries({"session.disable_quant_qdq": "1"})
    create_session(model, unfused, providers=CPU, options=Options(progress=told))
    assert (told.stages[0], told.stages[-1], told.stages.count("create session")) == ("open", "create session", 1)
    assert completed(told)
    # A first look shows that there is nothing to fuse.
    created = len(told.stages)
    create_session(str(save(floating(), tmp_path, "file", "small")), providers=CPU, options=Options(progress=told))
    assert told.stages[created:] == ["create session"]


def test_weights_that_another_process_pre_packs(model: str, cache: Path, told: Told) -> None:
    options = Options(cache_dir=cache, share_weights=True, progress=told)
    assert warm(model, options=options).cache == "made"
    assert [stage for stage in told.stages if stage in ("pack", "share", "disk")] == ["pack", "share", "disk"]
    assert completed(told, "pack", "share")
    again = Told()
    create_session(model, providers=CPU, options=Options(cache_dir=cache, share_weights=True, progress=again))
    assert {"cache", "create session"} == set(again.stages)
    assert completed(again)


@pytest.mark.parametrize("given", ["argument", "option"])
def test_a_model_that_is_exported(given: str, model: str, tmp_path: Path, told: Told) -> None:
    where = {"progress": told} if given == "argument" else {"options": Options(progress=told)}
    export(model, tmp_path / "out.onnx", external_data=True, **where)
    assert told.stages[-2:] == ["assemble", "write"]
    assert completed(told, "pack", "write")


def test_a_function_is_told_of_bytes_alone(model: str) -> None:
    seen: list[tuple[int, int]] = []
    create_session(model, providers=CPU, options=Options(progress=lambda *step: seen.append(step)))
    assert seen[-1][0] == seen[-1][1]


def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(stack(3, 128), tmp_path, "external")
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("docs/options.md", "python") if "progress=" in block]
    with contextlib.redirect_stderr(io.StringIO()) as told:
        exec(block, {})
    lines = told.getvalue().splitlines()
    assert (lines[0], lines[-1]) == ("open", "create session")
    (last,) = (line.split() for line in lines[lines.index("assemble") - 1 : lines.index("assemble")])
    assert (last[0], last[1]) == ("pack:", last[3])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("what", ["__call__", "stage"])
def test_what_it_raises_is_a_failure_like_others(
    what: str, strict: bool, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of the caller")

    monkeypatch.setattr(Told, what, fail)
    options = Options(progress=Told(), strict=strict)
    if strict:
        with pytest.raises(ZeroDivisionError):
            create_session(model, providers=CPU, options=options)
        return
    assert made_report(create_session(model, providers=CPU, options=options)).route == "stock"
    assert made_report(create_session(floating().SerializeToString(), providers=CPU, options=options)).route == "stock"
    assert ["ZeroDivisionError" in record.getMessage() for record in caplog.records] == [True]


def test_nothing_is_imported_where_nobody_asks() -> None:
    with shown(None, "model") as nobody:
        assert nobody is None
        tell_stage(nobody, "pack")
    with shown(print, "model") as function:
        assert function is print
        tell_stage(function, "pack")


def test_what_a_bar_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names: list[str] = []
    monkeypatch.setattr("ort_qdq_plugin.load.bar.bar", lambda name: names.append(name))
    for model in (b"a model", "folder/model.onnx", tmp_path / "other.onnx"):
        shown("bar", model)
    assert names == ["model", "model.onnx", "other.onnx"]
