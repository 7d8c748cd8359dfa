"""genai.md, but for its figures and versions: they are in `test_measuring.py` and tests/genai."""

import json
import sys
from pathlib import Path

import pytest

from ort_qdq_plugin import Options, genai
from ort_qdq_plugin.genai import calls, models
from ort_qdq_plugin.genai.calls import UnknownGenAIError
from ort_qdq_plugin.genai.config import model_files
from tests.claims.pages import rows_below, text_of
from tests.claims.registry import claim
from tests.claims.running import default_of
from tests.genai import small_model
from tests.genai.test_calls import version
from tests.support import saved_nodes

PAGE = "docs/genai.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a small model."""
    small_model.write_model(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_text("{}")
    return tmp_path / "llama"


@claim(
    PAGE,
    "`genai.load(folder)` is an `og.Model`; `genai.prepare(folder)` is an `og.Config`, for those who change it",
)
@claim(PAGE, "Both take an `og.Config` too.")
def test_load_and_prepare(folder: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    config = genai.prepare(str(folder), options=Options(strict=True))
    assert isinstance(config, og.Config)
    assert isinstance(og.Model(config), og.Model)
    for given in (str(folder), og.Config(str(folder))):
        model = genai.load(given, options=Options(strict=True))
        assert isinstance(model, og.Model)
        assert len(genai.report_of(model)["model.onnx"].fused) == 1
        assert isinstance(genai.prepare(given), og.Config)


@claim(PAGE, "fills the cache beforehand, without onnxruntime-genai.")
@claim(PAGE, "Weights that need no packing are copied into it (`copied_bytes` of the report says how much)")
def test_warm(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    reports = genai.warm(folder, options=Options(cache_dir=tmp_path / "cache"))
    (report,) = reports.values()
    assert (report.cache, report.copied_bytes > 0, len(report.fused)) == ("made", True, 1)


@claim(PAGE, "Without a cache the entry is in a temporary folder.")
@claim(PAGE, "and symbolic links of everything else: tokenizer, processors, adapters.")
@claim(PAGE, "It lives as long as the model, or the configuration.")
def test_the_temporary_folder(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    spill = tmp_path / "spill"
    spill.mkdir()
    model = genai.load(str(folder), options=Options(strict=True, spill_dir=spill))
    (made,) = [path for path in spill.iterdir() if path.is_dir()]
    links = {path.name: path.readlink() for path in made.rglob("*") if path.is_symlink()}
    assert links["tokenizer.json"] == folder / "tokenizer.json"
    (config,) = [path for path in made.rglob("genai_config.json") if not path.is_symlink()]
    assert json.loads(config.read_text())["model"]["decoder"]["filename"] != "model.onnx"
    del model
    assert not made.exists()


@claim(
    PAGE,
    "The accuracy level is that of the configuration (`session.qdq_matmulnbits_accuracy_level` among a",
)
def test_whose_accuracy_level(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["session.qdq_matmulnbits_accuracy_level"] = "1"
    (folder / "genai_config.json").write_text(json.dumps(config))
    for options, level in ((Options(), 1), (Options(accuracy_level=0), 0)):
        genai.export(folder, tmp_path / str(level), options=options)
        (node,) = saved_nodes(tmp_path / str(level) / "model.onnx")["MatMulNBits"]
        assert {attribute.name: attribute.i for attribute in node.attribute}.get("accuracy_level", 0) == level


@claim(PAGE, "Texts of 60 tokens that are those of stock")
@claim("docs/measuring.md", "are those of stock](genai.md#the-same-texts) at accuracy levels 4 and 0")
def test_the_texts_that_are_compared() -> None:
    assert default_of("benchmarks.genai_texts", "--tokens") == 60
    assert default_of("benchmarks.genai_texts", "--texts") == 10


@claim(PAGE, "The peak of a prepared folder is that of the QOperator folder: 1.00 times it here, from the cache.")
@claim(PAGE, "From the cache, the peak is 12 to 19 MB above that of the QOperator folder")
def test_ratios_of_the_tables() -> None:
    rows = {row[0]: row for row in rows_below(PAGE, "| folder | load | prefill, tokens/s | decode, tokens/s | peak |")}
    stock, ours = (int(rows[name][-1].split()[0]) for name in ("stock, QOperator", "this package, QDQ, from the cache"))
    assert f"{ours / stock:.2f}" == "1.00"
    heading = "| folder | K-major: peak | then anonymous | file-backed | N-major: peak | then anonymous | file-backed |"
    peaks = {row[0]: (int(row[1]), int(row[4])) for row in rows_below(PAGE, heading)}
    k_major, n_major = zip(peaks["stock, QOperator"], peaks["this package, QDQ, from the cache"], strict=True)
    assert sorted(ours - theirs for theirs, ours in (k_major, n_major)) == [12, 19]


@claim(PAGE, 'one warning says what it is: "onnxruntime-genai 0.99.0 is used without ort-qdq-plugin, which knows')
@claim(PAGE, 'its configurations have no overlay". With `Options(strict=True)` that is an error.')
def test_newer_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = version(without="Config.overlay")
    monkeypatch.setattr(models, "genai_module", lambda: module)
    monkeypatch.setattr(calls, "_stock", {})
    with pytest.raises(UnknownGenAIError) as told:
        genai.load("folder", options=Options(strict=True))
    assert f'"{told.value}"' in text_of(PAGE)


@claim(PAGE, "It reads `genai_config.json` and finds every ONNX file that it names: decoder, draft, encoder,")
@claim(PAGE, "A section without `session_options` has those of the decoder, but for `draft`.")
def test_files_that_a_configuration_names() -> None:
    sections = ("decoder", "draft", "encoder", "embedding", "vision", "speech")
    model: dict[str, dict[str, object]] = {name: {"filename": f"{name}.onnx"} for name in sections}
    model["decoder"]["session_options"] = {"intra_op_num_threads": 7}
    files = {file.filename: file.session_options for file in model_files({"model": model})}
    assert {*files} == {f"{name}.onnx" for name in sections}
    assert {name for name, options in files.items() if options.get("intra_op_num_threads") != 7} == {"draft.onnx"}
