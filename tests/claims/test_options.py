"""options.md."""

import itertools
import os
import pickle
import re
import tempfile
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from ort_qdq_plugin import Options, Reason, activate, create_session, deactivate, inspect, report_of
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.memory.buffer import spill_directories
from ort_qdq_plugin.options import Once, options_from_environment
from ort_qdq_plugin.report import Route
from ort_qdq_plugin.system.environment import YES
from ort_qdq_plugin.system.platform import host
from tests.claims.pages import rows_below
from tests.claims.registry import claim
from tests.support import (
    CPU,
    IN_PLACE,
    ROOT,
    START,
    added_provider,
    external_tensor,
    linear,
    made_report,
    mapped,
    python,
    quiet,
    raised,
    result,
    save,
    saved_nodes,
    stock,
    unquantized,
    with_entries,
)  # fmt: skip

PAGE = "docs/options.md"
STRICT = Options(strict=True)


def unoptimized() -> ort.SessionOptions:
    """Options with which ONNX Runtime computes in float what is dequantized."""
    options = quiet()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


@claim("docs/troubleshooting.md", "below 1 MiB in all")
@claim(PAGE, '`"auto"` (a file, unless they are below 1 MiB)')
def test_file_from_1_mib(tmp_path: Path) -> None:
    # A column takes 656 bytes: 512 of weights, 128 of scales, 16 of zero points.
    for columns, in_file in ((1590, False), (1610, True)):
        spill = tmp_path / str(columns)
        spill.mkdir()
        model = linear(Weight(k=1024, n=columns)).SerializeToString()
        session = create_session(model, quiet(), CPU, options=Options(strict=True, spill_dir=spill))
        assert (made_report(session).packed_bytes >= 1 << 20) == bool(mapped(spill)) == in_file


@claim(PAGE, "no more bytes than the model stores, or 128 MiB if that is more")
@claim("docs/how-it-works.md", "as the model stores, or 128 MiB if that is more")
def test_values_within_the_bound(tmp_path: Path) -> None:
    """Of convolutions of so many MiB each in int8, as many as add up to what the page says: as the model stores, or 128."""
    for sizes, chosen in (([31], [31]), ([33], []), ([20, 30, 10], [20, 10]), ([30, 5, 165], [30, 5])):
        draft = Draft("bound")
        draft.input("x", [1, 1024, 8])
        for number in range(len(sizes)):
            draft.dequantize(f"w{number}", (1, 1024, 1), axis=0, block=PER_TENSOR, element="int8", zero="none")
            draft.output(draft.node("Conv", ["x", f"w{number}_d"], f"y{number}"), None)
        model, offset = draft.model(), 0
        for number, size in enumerate(sizes):
            tensor = external_tensor(
                model, f"w{number}", location="w.data", offset=str(offset << 20), length=str(size << 20)
            )
            tensor.dims[0] = size << 10
            offset += size
        with (tmp_path / "w.data").open("wb") as file:
            file.truncate(offset << 20)
        entries = inspect(save(model, tmp_path, "file")).unfused
        assert [entry.bytes_added >> 22 for entry in entries if entry.bytes_added] == chosen
        assert [entry.reason is Reason.MEMORY for entry in entries] == [not entry.bytes_added for entry in entries]


@claim(PAGE, "| route | how ONNX Runtime got the model |")
def test_routes_are_those() -> None:
    """Those that a report may have. That sessions come by each of them is tested where the routes are."""
    rows = rows_below(PAGE, "| route | how ONNX Runtime got the model |")
    assert [row[0] for row in rows] == [f'`"{route}"`' for route in get_args(Route)]


@claim("docs/how-it-works.md", "with blocks of 32 or more, a NaN in the input vanishes")
@claim(PAGE, "At level 4 [a NaN in the input vanishes]")
def test_nan_vanishes(tmp_path: Path) -> None:
    """By blocks of 32 and more, of every number of bits, in stock's sessions as in ours."""
    for element, block in itertools.product(("uint2", "uint4", "uint8"), (16, 32, 128)):
        model = save(linear(Weight(element, block=block)), tmp_path, "bytes")
        for value, number in itertools.product((np.nan, np.inf), (4, 0)):
            x = np.ones((2, 128), np.float32)
            x[0, 3] = value
            key = with_entries({"session.qdq_matmulnbits_accuracy_level": str(number)})
            ours, theirs = (
                make(model, key, providers=CPU).run(None, {"x": x})[0] for make in (create_session, ort.InferenceSession)
            )
            if element == "uint2":  # ours may be a form with other rounding
                np.testing.assert_allclose(ours[1], theirs[1], rtol=0.05, atol=0.05)
            else:
                np.testing.assert_array_equal(ours, theirs)
            assert np.isfinite(ours[1]).all()
            if np.isnan(value):
                assert np.isfinite(ours[0]).all() if (number, block > 16) == (4, True) else np.isnan(ours[0]).all()
            elif number and block > 16:
                assert np.isnan(ours[0]).all()


# ---- options


def levels(model: str, folder: Path, options: Options, **entries: str) -> set[int]:
    """The accuracy levels of the products of a session."""
    settings = with_entries({key.replace("_dot_", "."): value for key, value in entries.items()})
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    create_session(model, settings, CPU, options=options)
    found = saved_nodes(folder / "optimized.onnx")["MatMulNBits"]
    return {helper.get_node_attr_value(node, "accuracy_level") for node in found}


@claim(PAGE, "Default: the session's `session.qdq_matmulnbits_accuracy_level`, else 4")
@claim(PAGE, "used where `Options` does not say otherwise")
def test_whose_accuracy_level_counts(small: str, tmp_path: Path) -> None:
    key = {"session.qdq_matmulnbits_accuracy_level": "1"}
    assert levels(small, tmp_path, Options(strict=True)) == {4}
    assert levels(small, tmp_path, Options(strict=True), **key) == {1}
    assert levels(small, tmp_path, Options(strict=True, accuracy_level=0), **key) == {0}


@claim(PAGE, "`MatMulNBits`' attribute, 0 (activations stay float) to 4 (rounded to 8 bits")
def test_accuracy_levels() -> None:
    for level in range(5):
        Options(accuracy_level=level)
    for level in (-1, 5):
        with pytest.raises(ValueError, match="accuracy_level"):
            Options(accuracy_level=level)
    sessions = [
        create_session(linear(Weight()).SerializeToString(), quiet(), CPU, options=Options(accuracy_level=level))
        for level in (0, 4)
    ]
    plain = stock(linear(Weight()).SerializeToString(), unoptimized())
    in_float, rounded = (np.abs(result(session) - result(plain)).max() for session in sessions)
    assert in_float < 1e-5 < rounded


@claim(PAGE, "a power of two from 16 to 256, 0 for ONNX Runtime's default (32;", "-1 for the one that pads least")
def test_block_sizes() -> None:
    per_column = linear(Weight(k=144, block=PER_CHANNEL)).SerializeToString()
    for given, block in ((None, 32), (0, 32), (16, 16), (256, 256), (-1, 16)):
        (fused,) = inspect(per_column, options=Options(block_size=given)).fused
        assert fused.block_size == block
    for size in (8, 24, 512, -2):
        with pytest.raises(ValueError, match="block_size"):
            Options(block_size=size)


@claim(PAGE, "256 for some of 8 bits")
def test_block_sizes_of_8_bits() -> None:
    model = linear(Weight("int8", k=512, block=PER_CHANNEL)).SerializeToString()
    assert inspect(model, options=Options(accuracy_level=0)).fused[0].block_size == 256


@IN_PLACE
@claim(PAGE, "into [the cache](cache.md) are in a file in any case")
def test_files_in_any_case(small: str, large: str, tmp_path: Path) -> None:
    options = Options(strict=True, buffer="memory", spill_dir=tmp_path, cache_dir=tmp_path / "cache")
    session = create_session(small, quiet(), CPU, options=options)
    assert mapped(next(path for path in (tmp_path / "cache").iterdir() if path.is_dir()))
    by_path = create_session(large, added_provider(), options=replace(options, cache_dir=None))
    assert (made_report(by_path).route, made_report(session).cache) == ("by path", "made")
    assert any(path.name.endswith(".spill") or "(deleted)" in str(path) for path in map(Path, mapped(tmp_path)))


@claim(PAGE, "Default: `TMPDIR` if it is set; else `/var/tmp`, and then the system's temporary directory")
def test_where_spill_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert [*spill_directories(None)] == [str(tmp_path)]
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert [*spill_directories(None)] == ["/var/tmp", tempfile.gettempdir()]
    assert [*spill_directories("given")] == ["given"]


@claim(PAGE, "Default: the session's intra-op threads, else all processors that the process may use; one if its")
@claim(PAGE, "| `intra_op_num_threads` | also the number of threads that pack |")
def test_how_many_threads_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    def packing(settings: ort.SessionOptions | None = None, **options: Any) -> int:
        return LoadRequest("", settings, Options(**options)).threads

    three = quiet()
    three.intra_op_num_threads = 3
    assert (packing(), packing(three), packing(three, threads=2)) == (len(os.sched_getaffinity(0)), 3, 2)
    monkeypatch.setattr(host, "memory_is_limited", lambda: True)
    assert (packing(), packing(three), packing(three, threads=2)) == (1, 1, 2)


@claim(PAGE, "raise where the default is to warn and load the untouched model with stock ONNX Runtime")
def test_strict_mode_raises(large: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = tmp_path / "nowhere"
    session = create_session(large, added_provider(), options=Options(spill_dir=nowhere))
    assert (made_report(session).route, len(caplog.records)) == ("stock", 1)
    with pytest.raises(OSError, match="nowhere"):
        create_session(large, added_provider(), options=Options(spill_dir=nowhere, strict=True))


@claim(PAGE, "goes to stock ONNX Runtime in strict mode too, which then loads it or raises its own error")
def test_strict_mode_is_about_this_package() -> None:
    for model in (unquantized().SerializeToString(), b"no model"):
        theirs, ours = raised(partial(stock, model)), raised(partial(create_session, model, quiet(), CPU, options=STRICT))
        assert ours == theirs


@claim(PAGE, '`"never"` (on every run, as in stock ONNX Runtime) or `"always"`')
def test_when_weights_are_dequantized_once(mixed_model: str) -> None:
    entries = {once: inspect(mixed_model, options=Options(dequantize_once=once)).unfused[0] for once in get_args(Once)}
    assert {once: entry.bytes_added for once, entry in entries.items()} == {"auto": 256, "never": 0, "always": 256}
    assert {once: entry.bytes_per_run for once, entry in entries.items()} == {"auto": 0, "never": 256, "always": 0}


@claim(PAGE, "| `progress` |")
def test_progress(large: str) -> None:
    seen: list[tuple[int, int]] = []
    create_session(large, quiet(), CPU, options=Options(strict=True, progress=lambda *moved: seen.append(moved)))
    assert max(seen) == (seen[0][1], seen[0][1])
    assert seen[0][1] > 0
    assert len({total for _, total in seen}) == 1


# ---- variables


@claim(PAGE, "| `ORT_QDQ_PLUGIN` | `1` (also true, yes, on) switches it on")
@claim("docs/troubleshooting.md", "The value must be 1, true, yes or on.")
def test_what_switches_it_on() -> None:
    assert YES == ("1", "true", "yes", "on")


@claim(
    PAGE,
    "a start-up file of one line (`ort_qdq_plugin.pth`). It does nothing where the variable is unset.",
    "Nothing heavy (NumPy, onnx, onnxruntime) is imported before that",
)
def test_the_start_up_file() -> None:
    (line,) = (ROOT / "ort_qdq_plugin/switch/ort_qdq_plugin.pth").read_text().splitlines()
    code = f"import sys\nexec({line!r})\nprint(*(name for name in sys.modules if name.split('.')[0] in sys.argv))"
    for variables, wanted in (({}, set()), ({"ORT_QDQ_PLUGIN": "1"}, {"ort_qdq_plugin"})):
        done = python(code, "ort_qdq_plugin", "numpy", "onnx", "onnxruntime", variables=variables)
        assert {name.split(".")[0] for name in done.stdout.split()} == wanted


@claim(PAGE, "| variable | meaning |")
def test_the_variables_are_those() -> None:
    """Each option that a text can say has one."""
    told = re.findall(
        r"`(?:ORT_QDQ_PLUGIN)?_([A-Z_]+)`", " ".join(row[0] for row in rows_below(PAGE, "| variable | meaning |"))
    )
    values = {
        "CACHE_DIR": "d",
        "PREPARED": str(ROOT),
        "SPILL_DIR": str(ROOT),
        "BUFFER": "memory",
        "VERIFY": "content",
        "DEQUANTIZE_ONCE": "never",
        "LOG": "",
        "LOG_FILE": "",
    }
    given = options_from_environment({f"ORT_QDQ_PLUGIN_{name}": values.get(name, "1") for name in told})
    changed = {field.name.upper() for field in fields(Options) if getattr(given, field.name) != field.default}
    assert changed == {*told} - {"LOG", "LOG_FILE"}
    without = {field.name.upper() for field in fields(Options)} - changed
    assert {"BLOCK_SIZE"} <= without <= {"BLOCK_SIZE", "PROGRESS"}


@claim(PAGE, "The block size has no variable of its own: set `session.qdq_matmulnbits_block_size`")
def test_the_block_sizes_key(tmp_path: Path) -> None:
    assert options_from_environment({"ORT_QDQ_PLUGIN_BLOCK_SIZE": "64"}) == Options()
    settings = with_entries({"session.qdq_matmulnbits_block_size": "64"})
    model = linear(Weight(block=PER_CHANNEL)).SerializeToString()
    (fused,) = made_report(create_session(model, settings, CPU)).fused
    assert fused.block_size == 64


LOADS = f"""{START}import logging, sys, onnxruntime
if len(sys.argv) > 2:
    logging.basicConfig(level="INFO", format="%(name)s %(message)s")
onnxruntime.InferenceSession(sys.argv[1])
"""


@claim(PAGE, "debug, info, warning, error or critical: log to stderr; at info one line for each session")
@claim(PAGE, "a file to whose end the log goes instead, at info unless the level is given")
@claim(PAGE, "Without this variable the messages go to the logger `ort_qdq_plugin`")
def test_where_the_log_goes(small: str, tmp_path: Path) -> None:
    def said(*arguments: str, **variables: str) -> list[str]:
        return python(LOADS, small, *arguments, variables={"ORT_QDQ_PLUGIN": "1", **variables}).stderr.splitlines()

    (line,) = said(ORT_QDQ_PLUGIN_LOG="info")
    assert "1 fused" in line
    assert said(ORT_QDQ_PLUGIN_LOG="warning") == said() == []
    log = tmp_path / "log"
    for level in ("", "error", "info"):
        assert said(ORT_QDQ_PLUGIN_LOG_FILE=str(log), ORT_QDQ_PLUGIN_LOG=level) == []
    assert log.read_text().count("1 fused") == 2
    (line,) = said("basicConfig")
    assert line.startswith("ort_qdq_plugin ")


@claim(
    PAGE,
    "A session from `create_session` keeps the options that it was given",
    "Subclasses, `isinstance` and pickles see no",
)
def test_activated_from_code(small: str) -> None:
    plain = ort.InferenceSession
    activate(Options(strict=True, dequantize_once="never"))
    try:
        session = ort.InferenceSession(small, providers=CPU)
        assert len(made_report(session).fused) == 1
        assert type(session) is plain is pickle.loads(pickle.dumps(ort.InferenceSession))
        kept = create_session(small, quiet(), CPU, options=Options(accuracy_level=0))
        assert not np.array_equal(result(kept), result(session))
    finally:
        deactivate()
    assert report_of(ort.InferenceSession(small, providers=CPU)) is None
