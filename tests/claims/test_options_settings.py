"""options.md: settings of ONNX Runtime that are respected."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_inference_collection as collection
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, Report, StockReason, create_session, export
from ort_qdq_plugin.ort import buffers
from ort_qdq_plugin.ort.keys import config_entry
from tests.claims.registry import claim
from tests.support import (
    CPU,
    IN_PLACE,
    added_provider,
    linear,
    made_report,
    quiet,
    result,
    save,
    saved_nodes,
    stock,
    with_entries,
)  # fmt: skip

PAGE = "docs/options.md"
DISABLED = "optimization.disable_specified_optimizers"
QDQ_OPTIMIZER = "QDQSelectorActionTransformer"


def report_with(settings: ort.SessionOptions, model: str, **arguments: object) -> Report:
    """The report of a session with these settings, which give what they give without this package."""
    session = create_session(model, settings, CPU, options=Options(strict=True), **arguments)  # type: ignore[arg-type]
    np.testing.assert_allclose(result(session), result(stock(model)), rtol=0.05, atol=0.05)
    return made_report(session)


def nothing_done(report: Report) -> bool:
    return not report.fused and not any(entry.bytes_added for entry in report.unfused)


@claim(PAGE, "| `session.disable_quant_qdq=1` | nothing is fused or dequantized once;")
def test_quantized_operators_that_are_disabled(mixed_model: str) -> None:
    report = report_with(with_entries({"session.disable_quant_qdq": "1"}), mixed_model)
    assert (nothing_done(report), report.stock_reason) == (True, StockReason.FUSION_DISABLED)


@claim(PAGE, "| `graph_optimization_level` below `ORT_ENABLE_EXTENDED` | nothing is fused or dequantized once |")
def test_levels_of_optimization(mixed_model: str) -> None:
    for name, fused in (("DISABLE_ALL", 0), ("ENABLE_BASIC", 0), ("ENABLE_EXTENDED", 1), ("ENABLE_ALL", 1)):
        settings = quiet()
        settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{name}")
        report = report_with(settings, mixed_model)
        assert (len(report.fused), nothing_done(report)) == (fused, not fused)


@claim(PAGE, '| `disabled_optimizers=["QDQSelectorActionTransformer"]`, or `optimization.disable_specified_optimizers`')
@claim(PAGE, "The entry's names are separated by `;`, without spaces, and do not count if the argument has names |")
def test_disabled_optimizers(mixed_model: str) -> None:
    for entry, argument, fused in (
        (None, [QDQ_OPTIMIZER], 0),
        (QDQ_OPTIMIZER, [], 0),
        (f"MatMulAddFusion;{QDQ_OPTIMIZER}", [], 0),
        (f"MatMulAddFusion; {QDQ_OPTIMIZER}", [], 1),
        (QDQ_OPTIMIZER, ["MatMulAddFusion"], 1),
    ):
        settings = with_entries({} if entry is None else {DISABLED: entry})
        assert len(report_with(settings, mixed_model, disabled_optimizers=argument).fused) == fused


@claim(PAGE, "leaves the model to stock. If you name and add none, the model runs on the CPU, as in ONNX Runtime |")
def test_providers(small: str) -> None:
    session = create_session(small, quiet())
    assert (session.get_providers(), len(made_report(session).fused)) == (CPU, 1)


@claim(
    PAGE,
    "| where external data lies, for models given as bytes too |",
)
def test_where_external_data_lies(large: str, tmp_path: Path) -> None:
    settings = with_entries({"session.model_external_initializers_file_folder_path": str(Path(large).parent)})
    elsewhere = tmp_path / "elsewhere.onnx"
    elsewhere.write_bytes(Path(large).read_bytes())
    for model in (str(elsewhere), elsewhere.read_bytes()):
        session = create_session(model, settings, CPU, options=Options(strict=True))
        assert len(made_report(session).fused) == 3
        np.testing.assert_array_equal(result(session), result(create_session(large, quiet(), CPU)))


@claim(PAGE, "| `session.load_model_format=ORT` | the model goes to stock |")
def test_models_in_ort_format(tmp_path: Path) -> None:
    settings = with_entries({"session.save_model_format": "ORT"})
    settings.optimized_model_filepath = path = str(tmp_path / "model.ort")
    stock(linear(Weight("uint8")).SerializeToString(), settings)
    report = report_with(with_entries({"session.load_model_format": "ORT"}), path)
    assert report.stock_reason is StockReason.ORT_FORMAT


@claim(PAGE, "kept as you set it; from 32 MiB on, pre-packing runs in parallel if you did not |")
def test_parallel_pre_packing(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, native = "session.prepack.enable_parallel", collection.C.InferenceSession
    given: list[list[str | None]] = []

    def seen(settings: ort.SessionOptions, *arguments: object) -> object:
        given[-1].append(config_entry(settings, key))
        return native(settings, *arguments)

    create_session(large, quiet(), CPU)  # transposing has a session of its own
    assert buffers._PARALLEL_BYTES == 32 << 20
    for value, enough in ((None, True), (None, False), ("0", True), ("1", False)):
        monkeypatch.setattr(buffers, "_PARALLEL_BYTES", 0 if enough else 32 << 20)
        settings = with_entries({} if value is None else {key: value})
        given.append([])
        with monkeypatch.context() as patched:
            patched.setattr(collection.C, "InferenceSession", seen)
            create_session(large, settings, CPU)
    # The last one is the session; those before it look for what a copy of the options has.
    assert [values[-1] for values in given] == ["1", None, "0", "1"]


@claim(PAGE, "works: the written model has the weights inside, or in the file that you name for them, and needs nothing")
def test_optimized_models_that_are_saved(large: str, tmp_path: Path) -> None:
    wanted = result(create_session(large, quiet(), CPU))
    for number, entries in enumerate(({}, {"session.optimized_model_external_initializers_file_name": "named.bin"})):
        settings = with_entries(entries)
        folder = tmp_path / str(number)
        folder.mkdir()
        settings.optimized_model_filepath = str(folder / "saved.onnx")
        create_session(large, settings, CPU, options=Options(strict=True, cache_dir=tmp_path / "cache"))
        assert len(saved_nodes(folder / "saved.onnx")["MatMulNBits"]) == 3
        assert sorted(path.name for path in folder.iterdir()) == sorted(["saved.onnx", *entries.values()])
        np.testing.assert_array_equal(result(stock(str(folder / "saved.onnx"))), wanted)
    by_path = added_provider()
    by_path.optimized_model_filepath = str(tmp_path / "by_path.onnx")
    report = made_report(create_session(large, by_path, options=Options(strict=True)))
    assert report.stock_reason is StockReason.OPTIMIZED_MODEL


@claim(PAGE, "| `enable_profiling` | works: one profile, and no stray file |")
def test_profiles(small: str, tmp_path: Path) -> None:
    settings = quiet()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(tmp_path / "profile")
    session = create_session(small, settings, CPU)
    result(session)
    assert [*tmp_path.iterdir()] == [Path(session.end_profiling())]


@claim(PAGE, "| values or files added by `add_external_initializers` and")
def test_added_initializers(small: str, large: str) -> None:
    with_files, with_values = quiet(), quiet()
    with_files.add_external_initializers_from_files_in_memory(["f"], [bytes(8)], [8])
    with_values.add_external_initializers(["w0_s"], [ort.OrtValue.ortvalue_from_numpy(np.ones((32, 1024), np.float32))])
    for model, settings in ((large, with_values), (small, with_files)):
        assert report_of_any(model, settings) is StockReason.ADDED_INITIALIZERS


def report_of_any(model: str, settings: ort.SessionOptions) -> StockReason | None:
    return made_report(create_session(model, settings, CPU, options=Options(strict=True))).stock_reason


@claim(PAGE, "`ORT_LOAD_CONFIG_FROM_MODEL=1` | a model that holds session options goes to stock |")
def test_options_in_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear(Weight())
    model.metadata_props.add(key="ort_config", value='{"session_options": {"intra_op_num_threads": 1}}')
    path = str(save(model, tmp_path, "file"))
    assert report_of_any(path, quiet()) is None
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    assert report_of_any(path, quiet()) is StockReason.OPTIONS_IN_MODEL


@IN_PLACE
@claim(PAGE, "is handed over without a copy also where nothing may be fused")
def test_models_that_are_fused_already(large: str, tmp_path: Path) -> None:
    export(large, tmp_path / "fused.onnx", external_data=True)
    settings = quiet()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    report = made_report(create_session(tmp_path / "fused.onnx", settings, CPU))
    assert (report.route, report.stock_reason, report.fused) == ("borrowed", None, ())
    assert len(saved_nodes(tmp_path / "fused.onnx")["MatMulNBits"]) == 3
