"""troubleshooting.md: what reports and warnings say, the spill directory, config entries and telemetry."""

import errno
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_inference_collection as collection
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_TENSOR
from ort_qdq_plugin import Options, Report, StockReason, create_session, inspect
from ort_qdq_plugin.load import hand_over
from ort_qdq_plugin.ort.keys import config_entry
from ort_qdq_plugin.system.platform import files
from tests.claims.registry import claim
from tests.support import (
    CPU,
    IN_PLACE,
    START,
    added_provider,
    made_report,
    mapped,
    python,
    quiet,
    refuse,
    result,
    stack,
    stock,
    unquantized,
    with_entries,
)  # fmt: skip

PAGE = "docs/troubleshooting.md"
KEYS = (
    "session.model_external_initializers_file_folder_path", "session.prepack.enable_parallel",
    "session.qdq_matmulnbits_accuracy_level", "session.qdq_matmulnbits_block_size",
)  # fmt: skip
DEFAULTS = {KEYS[2]: "4", KEYS[3]: "0"}


def loaded(model: str | bytes, settings: ort.SessionOptions | None = None, **options: Any) -> Report:
    return made_report(create_session(model, settings or quiet(), options=Options(**options)))


# ---- what reports say


@claim(PAGE, "**The report has `unfused` lines.** Each says how many bytes are dequantized on every run:")
@claim(PAGE, "**The report begins with `stock ONNX Runtime`.** Nothing was done. The same line says why.")
@claim(PAGE, "The report's second line says why.")
@claim(PAGE, "`report_of(session).stock_reason` says why (a `StockReason`). Its sentence is in the report's first line,")
def test_lines_of_reports(mixed_model: str, small: str) -> None:
    report = loaded(mixed_model, dequantize_once="never")
    assert report.unfused[0].bytes_per_run == 256
    assert str(report).splitlines()[-1].startswith("  unfused b_d_node: ")
    assert "MB dequantized per run" in str(report)
    left = loaded(unquantized().SerializeToString())
    assert str(left).splitlines()[0].startswith(f"stock ONNX Runtime: {left.stock_reason}")
    by_path = loaded(small, added_provider())
    assert (str(by_path).startswith("by path: "), str(by_path).splitlines()[1]) == (
        True, f"  by path: {by_path.route_reason}",
    )  # fmt: skip


@claim(PAGE, "which takes 4 to 16 times their bytes")
@claim(PAGE, "it goes back to the system, from 16 MiB of values on")
@claim("docs/how-it-works.md", "Values in float take 4 to 16 times the bytes of the weight.")
def test_values_in_float() -> None:
    times = []
    for element in ("int8", "int4", "int2"):
        draft = Draft("conv", opset=25)
        draft.input("x", [1, 64, 8])
        draft.dequantize("w", (64, 64, 1), axis=0, block=PER_TENSOR, element=element, zero="none")
        draft.output(draft.node("Softmax", ["w_d"], "y"), None)
        (entry,) = inspect(draft.model().SerializeToString(), check=False).unfused
        times.append(entry.bytes_added // (entry.stored_bytes - 4))
    assert times == [4, 8, 16]
    assert hand_over._TRIM_HEAP_BYTES == 16 << 20


@claim(PAGE, "**Everything else** that stock fuses is equal to the last bit at the same accuracy level.")
@claim(PAGE, "Compare with `Options(accuracy_level=0)`.")
def test_results(large: str) -> None:
    for level in (0, 4):
        theirs = stock(large, with_entries({"session.qdq_matmulnbits_accuracy_level": str(level)}))
        ours = create_session(large, quiet(), CPU, options=Options(accuracy_level=level))
        np.testing.assert_array_equal(result(ours), result(theirs))
    n_major = stack(2, 256, n_major=True).SerializeToString()
    exact, rounded = (create_session(n_major, quiet(), CPU, options=Options(accuracy_level=level)) for level in (0, 4))
    in_float = result(stock(n_major))
    assert np.abs(result(exact) - in_float).max() < 1e-5 < np.abs(result(rounded) - in_float).max()


# ---- warnings


@claim(
    PAGE,
    "`loading with stock ONNX Runtime, without ",
)
@claim(PAGE, "`Options(strict=True)` or `ORT_QDQ_PLUGIN_STRICT=1` raises the error instead, with its traceback.")
@claim(PAGE, "| `OSError`: no space, no directory, not permitted | the weights go")
def test_the_fallback(large: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = tmp_path / "nowhere"
    report = loaded(large, added_provider(), spill_dir=nowhere)
    assert report.stock_reason is StockReason.ERROR
    (record,) = caplog.records
    assert record.getMessage().startswith("loading with stock ONNX Runtime, without ")
    assert ": OSError: " in record.getMessage()
    with pytest.raises(OSError, match="nowhere"):
        loaded(large, added_provider(), spill_dir=nowhere, strict=True)


@claim(PAGE, "| `no room for spill files of ... bytes (...): packing into memory instead; ...` |")
@claim(PAGE, "there is one warning, and they are packed into memory.")
@claim(PAGE, "where no file can be made anywhere, and no directory is named, there is no warning")
@claim(PAGE, "(there was a warning, unless there is no directory for it at all)")
def test_no_room(large: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    refuse(monkeypatch, files, "reserve", errno.ENOSPC)
    report = loaded(large, strict=True)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"no room for spill files of {report.packed_bytes} bytes (")
    assert "): packing into memory instead" in record.getMessage()
    caplog.clear()
    monkeypatch.delenv("TMPDIR", raising=False)
    refuse(monkeypatch, files, "open_unnamed", errno.EROFS)
    assert (len(loaded(large, strict=True).fused), caplog.records) == (3, [])


@claim(PAGE, "the variable is set, but the package or something that it needs cannot be imported")
def test_what_cannot_be_activated() -> None:
    code = "import sys; sys.modules['ort_qdq_plugin.switch.activation'] = None\nimport onnxruntime"
    done = python(f"{START}{code}", variables={"ORT_QDQ_PLUGIN": "1"})
    assert (done.returncode, done.stderr.startswith("cannot be activated: ModuleNotFoundError: ")) == (0, True)


@claim(PAGE, "| `weights are not shared between processes: ...` | they could not be pre-packed for the cache,")
def test_weights_that_are_not_shared(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert loaded(small, cache_dir=tmp_path, share_weights=True, strict=True).cache == "made"
    (record,) = caplog.records
    assert record.getMessage().startswith("weights are not shared between processes: ")


# ---- the spill directory


@IN_PLACE
@claim(
    PAGE,
    "The file has no name: `ls` does not show it, `df` does, and `lsof +L1` lists it. The space comes back",
)
@claim(PAGE, "Space is reserved before anything is written, so a full disk is noticed early.")
def test_files_without_a_name(large: str, tmp_path: Path) -> None:
    session = create_session(large, quiet(), CPU, options=Options(strict=True, spill_dir=tmp_path))
    assert ([*tmp_path.iterdir()], len(mapped(tmp_path)) > 0) == ([], True)
    assert all(line.endswith(" (deleted)") for line in mapped(tmp_path))
    ranges = [line.split()[0].split("-") for line in mapped(tmp_path)]
    assert sum(int(end, 16) - int(start, 16) for start, end in ranges) >= made_report(session).packed_bytes
    del session
    assert mapped(tmp_path) == []


@claim(PAGE, "Files named `ort-qdq-*.spill` belong to loads by path.")
@claim(PAGE, "the next load by path into the same directory removes it")
def test_files_with_a_name(large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    native = collection.C.InferenceSession

    def looked(*arguments: object) -> object:
        seen.extend(path.name for path in tmp_path.iterdir())
        return native(*arguments)

    (tmp_path / "ort-qdq-left.spill").touch()
    monkeypatch.setattr(collection.C, "InferenceSession", looked)
    loaded(large, added_provider(), spill_dir=tmp_path, strict=True)
    named = {name for name in seen if name.startswith("ort-qdq-") and name.endswith(".spill")}
    assert named - {"ort-qdq-left.spill"}
    assert [*tmp_path.iterdir()] == []


@claim(
    PAGE,
    "and two entries of your options change during the call; so do those of accuracy level and block size",
)
@claim(PAGE, "They are put back. The warning is harmless.")
def test_entries_that_are_put_back(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So another session with the same options finds them as they were, too."""
    settings, native = added_provider(), collection.C.InferenceSession
    given: list[dict[str, str]] = []

    def looked(options: ort.SessionOptions, *arguments: object) -> object:
        given.append({key: value for key in KEYS if (value := config_entry(options, key))})
        return native(options, *arguments)

    monkeypatch.setattr(collection.C, "InferenceSession", looked)
    by_path = {KEYS[0]: "/", KEYS[1]: "1"}
    both: dict[str, Any] = {"accuracy_level": 0, "block_size": 64}
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [({}, {}), (both, {KEYS[2]: "0", KEYS[3]: "64"}), ({}, DEFAULTS)]
    for options, more in cases:
        create_session(large, settings, options=Options(strict=True, **options))
        assert given[-1] == by_path | more
        assert {key: config_entry(settings, key) or "" for key in KEYS[:2]} == dict.fromkeys(KEYS[:2], "")
        assert {config_entry(settings, key) for key in KEYS[2:]} <= {None, *DEFAULTS.values()}


# ---- telemetry


@claim(PAGE, "The helper has the variable whatever yours is")
def test_the_helper_sends_nothing(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    given: list[str] = []
    popen: Any = subprocess.Popen

    def started(*arguments: Any, env: dict[str, str], **named: Any) -> Any:
        given.append(env["ORT_DISABLE_TELEMETRY"])
        return popen(*arguments, env=env, **named)

    monkeypatch.setattr(subprocess, "Popen", started)
    loaded(small, cache_dir=tmp_path, share_weights=True, strict=True)
    assert given == ["1"]


@claim(PAGE, "| session | when | why |")
@claim(PAGE, "one for each load with `SessionOptions`, two for one that makes a shared entry of the cache")
@claim(PAGE, "Loads without `SessionOptions` have none of these but the first.")
@claim(PAGE, "it is loaded and never initialized | one for each load with `SessionOptions` |")
@claim(PAGE, "| looks for added providers | one for each load with providers added to the options |")
@claim(PAGE, "one or two for each `inspect`, unless it is told `check=False` |")
def test_sessions_of_its_own(large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native, made = collection.C.InferenceSession, [0]

    def counted(*arguments: object) -> object:
        made[0] += 1
        return native(*arguments)

    def sessions(load: Callable[[], object]) -> int:
        made[0] = 0
        load()
        return made[0]

    create_session(large, providers=CPU)  # the sessions that transpose are kept for all later loads
    monkeypatch.setattr(collection.C, "InferenceSession", counted)
    # One is the session itself.
    assert sessions(partial(create_session, large, providers=CPU)) == 1
    assert sessions(partial(create_session, large, quiet(), CPU)) == 1 + 2
    assert sessions(partial(create_session, large, added_provider())) == 1 + 3
    shared = Options(strict=True, cache_dir=tmp_path, share_weights=True)
    assert sessions(partial(create_session, large, quiet(), CPU, options=shared)) == 1 + 3
    assert sessions(partial(inspect, large)) in (1, 2)
    assert sessions(partial(inspect, large, check=False)) == 0
