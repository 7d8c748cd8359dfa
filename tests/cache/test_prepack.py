"""Entries with pre-packed weights: stock ONNX Runtime opens them, and computes the same."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ort_qdq_plugin import Options, warm
from ort_qdq_plugin.cache.contained import DATA
from ort_qdq_plugin.cache.entry import MODEL, SHARED_MODEL
from ort_qdq_plugin.cache.prepack import main
from ort_qdq_plugin.system import opened
from tests.cache.support import entries, load
from tests.support import Form, python, quiet, result, save, stack, stock

PREPACKED = "prepacked_"
SAVED = "saved.tmp"


def made_entry(folder: Path, model: onnx.ModelProto, form: Form = "external") -> Path:
    """An entry as it is when the helper process gets it: it needs no other files, and its own can be added to."""
    options = Options(cache_dir=folder / "cache", share_weights=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ort_qdq_plugin.cache.writer.prepacked_in_another_process", lambda *_: 0)
        warm(str(save(model, folder, form)), options=options)
    (entry,) = entries(folder / "cache")
    for name in entry.glob("*.bin"):
        name.chmod(0o600)
    return entry


def pair(n_major: bool = False) -> onnx.ModelProto:
    return stack(2, 256, n_major=n_major)


def references(model: Path) -> dict[str, dict[str, str]]:
    """Where the model's tensors are, and their blobs."""
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    return {tensor.name: {item.key: item.value for item in tensor.external_data} for tensor in tensors}


def blobs(reference: dict[str, str]) -> list[tuple[int, int]]:
    """Offset and length of each blob of a tensor."""
    values = [value for key, value in reference.items() if key.startswith(PREPACKED)]
    parts = [part.split(";") for value in values for part in value.split("|")[1:]]
    return [(int(offset), int(length)) for offset, length, *_ in parts]


@pytest.mark.parametrize("form", ["file", "external"])
@pytest.mark.parametrize("n_major", [False, True])
def test_stock_computes_the_same(
    tmp_path: Path, form: Form, n_major: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opened, "_CHUNK_BYTES", 1000)
    entry = made_entry(tmp_path, pair(n_major), form)
    assert main([str(entry)]) == 0
    shared, plain = (stock(str(entry / name)) for name in (SHARED_MODEL, MODEL))
    np.testing.assert_array_equal(result(shared), result(plain))
    nbytes = int(capsys.readouterr().out.split()[-1])
    assert nbytes == sum(length for one in references(entry / SHARED_MODEL).values() for _, length in blobs(one)) > 0
    assert not (entry / SAVED).exists()


def test_blobs_lie_behind_the_tensor_they_were_made_of(tmp_path: Path) -> None:
    entry = made_entry(tmp_path, pair())
    before = {path.name: path.read_bytes() for path in entry.glob("packed-*")}
    main([str(entry)])
    plain, shared = references(entry / MODEL), references(entry / SHARED_MODEL)
    for name, reference in shared.items():
        assert {key: value for key, value in reference.items() if not key.startswith(PREPACKED)} == plain[name]
    for name, data in before.items():
        after = (entry / name).read_bytes()
        assert after[: len(data)] == data
        places = sorted(place for one in shared.values() if one["location"] == name for place in blobs(one))
        assert all(offset % 4096 == 0 for offset, _ in places)
        ends = [len(data), *(offset + length for offset, length in places)]
        assert all(end <= offset for end, (offset, _) in zip(ends, places, strict=False))
        assert ends[-1] == len(after) > len(data)


def test_the_models_own_files_are_not_added_to(tmp_path: Path) -> None:
    entry = made_entry(tmp_path, pair(n_major=True))
    data = tmp_path / "model.data"
    before = (data.read_bytes(), data.stat().st_ctime_ns)
    main([str(entry)])
    assert (data.read_bytes(), data.stat().st_ctime_ns) == before
    shared = references(entry / SHARED_MODEL)
    assert {reference["location"] for reference in shared.values() if blobs(reference)} == {DATA}


@pytest.mark.parametrize("missing", [DATA, MODEL])
def test_a_failure_leaves_no_saved_model(tmp_path: Path, missing: str) -> None:
    entry = made_entry(tmp_path, pair(n_major=True))
    (entry / missing).unlink()
    with pytest.raises(Exception, match=r"data|model"):
        main([str(entry)])
    assert not (entry / SAVED).exists()
    assert not (entry / SHARED_MODEL).exists()


def blob_bytes(model: Path) -> dict[tuple[str, str], list[bytes]]:
    """The content of all blobs by their tensor and ONNX Runtime's name for them."""
    found = {}
    for name, reference in references(model).items():
        for key, value in reference.items():
            if key.startswith(PREPACKED):
                kernel, *parts = value.split("|")
                data = (model.parent / reference["location"]).read_bytes()
                ranges = [tuple(map(int, part.split(";")[:2])) for part in parts]
                found[name, kernel] = [data[offset : offset + length] for offset, length in ranges]
    return found


@pytest.mark.parametrize("n_major", [False, True])
def test_blobs_are_those_that_the_whole_model_gives(tmp_path: Path, n_major: bool) -> None:
    """Also of a product in float, which is pre-packed with what is left of the model, and of one weight with two readers."""
    model = stack(2, 256, n_major=n_major)
    graph, weight = model.graph, np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
    product = [node for node in graph.node if node.op_type == "MatMul"][-1]
    graph.initializer.append(numpy_helper.from_array(weight, "float_weight"))
    graph.node.append(helper.make_node("MatMul", [graph.output[0].name, "float_weight"], ["float_product"]))
    graph.node.append(helper.make_node("MatMul", [graph.output[0].name, product.input[1]], ["twice"]))
    graph.output.extend([helper.make_empty_tensor_value_info(name) for name in ("float_product", "twice")])
    entry = made_entry(tmp_path, model)
    main([str(entry)])
    options = quiet()
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", "saved.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "0"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    stock(str(entry / MODEL), options)
    wanted = blob_bytes(tmp_path / "saved.onnx")
    assert {kernel.partition("+")[0] for _, kernel in wanted} == {"MatMul", "MatMulNBits"}
    assert blob_bytes(entry / SHARED_MODEL) == wanted


# In a process of its own: the memory tells, and that of earlier sessions would be used again.
UNCHECKED = """
import sys
from ort_qdq_plugin.cache import entry
from tests.cache.support import load
entry._check_files = lambda *_: None
loaded = load(sys.argv[1], sys.argv[2], share_weights=True)
print(loaded.digest, loaded.report.shared_bytes)
"""


@pytest.mark.needs("sizes")
def test_weights_that_are_not_shared_after_all_are_reported(tmp_path: Path, cache: Path) -> None:
    """As on another kind of processor, whose hash of what it pre-packs is another one."""
    model = str(save(stack(12, 2048), tmp_path, "external"))
    wanted = load(model, cache, share_weights=True).digest
    shared = entries(cache)[0] / "model-shared.onnx"
    proto = onnx.load(shared, load_external_data=False)
    for tensor in proto.graph.initializer:
        for item in tensor.external_data:
            if item.key.startswith("prepacked"):
                item.value = item.value.replace("MatMulNBits+", "MatMulNBits+9")
    shared.chmod(0o600)
    onnx.save(proto, shared)
    shared.chmod(0o400)
    done = python(UNCHECKED, model, cache)
    assert done.stdout.split() == [wanted, "0"]
    assert "not shared" in done.stderr
