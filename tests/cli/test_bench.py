"""`bench` and `demo`: what is measured of whom, the inputs that are made up, and the picture."""

import json
import os
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import StockReason
from ort_qdq_plugin.cli import bench, demo_model
from ort_qdq_plugin.cli.console import UsageError
from ort_qdq_plugin.cli.inputs import random_inputs
from tests.cli.support import Here, apart, on_terminal
from tests.support import save, stack, stock, unquantized

PEERS = ["stock", "qoperator", "cached", "shared", "ours"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(save(stack(2, 256), tmp_path, "external"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_every_way_is_measured_and_gives_the_same(model: Path) -> None:
    done = apart("bench", model, "--runs", 2, "--json")
    assert done.code == 0, done.err
    plain = json.loads(done.out)
    assert list(plain["peers"]) == PEERS
    for peer in plain["peers"].values():
        assert (peer["failure"], peer["difference"], len(peer["runs"])) == ("", 0.0, 2)
        for run in peer["runs"]:
            assert 0 < run["init"] < run["loaded"] < run["finished"]
            assert 0 < run["samples"][0][0] < run["samples"][-1][0] <= run["finished"]
            assert min(run["first"], run["steady"]) > 0
            assert run["peak"] >= sum(run["resident"].values()) > 10e6
    fused = {name: peer["runs"][0]["fused"] for name, peer in plain["peers"].items()}
    assert fused == {"stock": 0, "qoperator": 0, "cached": 2, "shared": 2, "ours": 2}


@pytest.mark.slow
def test_tables_have_medians_and_spread_and_the_picture_curves(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    image = pytest.importorskip("matplotlib.image")
    arguments = ["bench", model, "--peers", "stock", "--runs", 3, "--plot", tmp_path / "memory.png"]
    said = here.said(*arguments)
    lines = [line for line in said.splitlines() if not line.startswith("ours: ") and "memory.png" not in line]
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.startswith("      ")]) == 4
    assert (said.count("identical"), said.count("qoperator")) == (2, 0)
    pixels = image.imread(tmp_path / "memory.png")
    # Two curves, each in the colour of its own.
    for colour in ("#1f77b4", "#ff7f0e"):
        wanted = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        assert (np.abs(pixels[:, :, :3] - wanted).max(axis=2) < 0.01).sum() > 200
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'ort-qdq-plugin[plot]'" in here.refused(*arguments)


def test_the_fused_model_of_weights_that_are_used_in_place(tmp_path: Path, here: Here) -> None:
    model = save(stack(2, 256, n_major=True), tmp_path, "external")
    assert here.said("bench", model, "--peers", "qoperator", "--runs", 1).count("identical") == 2


def test_a_way_that_fails_is_a_finding(tmp_path: Path, here: Here) -> None:
    said = here.said("bench", save(unquantized(), tmp_path, "file"), "--peers", "qoperator", "--runs", 1, code=1)
    assert f"qoperator failed: {StockReason.NOT_QUANTIZED}" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--peers", "stock,nobody"], "nobody"),
        (["--runs", "0"], "--runs"),
        (["--input", "x"], "--input x"),
        (["--input", "x=3xm"], "x=3xm"),
        (["--input", "z=1x256"], "no input z; inputs are x"),
        (["--input", "x=1x255"], "--input x=1x255: the model's x is m x 256"),
        (["--input", "x=256"], "--input x=256: the model's x is m x 256"),
        (["--layers", "2"], "--layers is for the decoder"),
    ],
)
def test_bad_usage(arguments: list[str], fault: str, model: Path, here: Here) -> None:
    assert fault in here.refused("bench", model, *arguments)


@pytest.mark.parametrize(
    ("path", "fault"), [("gone/m.png", "there is no folder"), ("m.doc", "must end with one of"), (".", "a folder, must be")]
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(
    path: str, fault: str, model: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "compare", None)
    assert fault in here.refused("bench", model, "--plot", tmp_path / path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "may not be written" in here.refused("bench", model, "--plot", tmp_path / "m.png")


def test_a_folder_is_no_model(model: Path, here: Here) -> None:
    assert "a folder: bench measures one model" in here.refused("bench", model.parent)


def test_external_data_that_is_too_short(model: Path, here: Here) -> None:
    os.truncate(model.with_suffix(".data"), 1000)
    assert "has 1000 bytes, 83968 are needed" in here.refused("bench", model)


def test_a_model_of_our_own(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model, "PHI_3_MINI", demo_model.Decoder(32, 64, 128, 96))
    said = here.said("bench", "--layers", 2, "--peers", "stock", "--runs", 1)
    assert ("A decoder of 2 layers" in said, "9 fused" in said) == (True, True)


@pytest.mark.slow
def test_progress_only_on_a_terminal(model: Path) -> None:
    arguments = ("bench", model, "--peers", "stock", "--runs", 2)
    lines = [line.rstrip() for line in on_terminal(*arguments).out.split("\r") if line.startswith("measuring: ")]
    assert max(map(len, lines)) < 80
    seen = [turn for turn, _ in groupby(line.partition(" [")[0] for line in lines)]
    runs = ("warming up", "run 1 of 2", "run 2 of 2")
    turns = [f"measuring: way {way} of 2, {name}, {run}" for run in runs for way, name in enumerate(("stock", "ours"), 1)]
    # What is done within half a second is not shown yet.
    assert seen == turns[-len(seen) :]
    assert "measuring" not in "".join(map(str, apart(*arguments)))


@pytest.mark.long  # README's install command runs it, too
def test_the_demo_agrees() -> None:
    done = apart(text="")
    assert done.code == 0, done.err
    assert "Both ways agree." in done.out


# ---- inputs


def inputs_of(draft: Draft, folder: Path, given: dict[str, tuple[int, ...]] | None = None) -> dict[str, np.ndarray]:
    return random_inputs(str(save(draft.model(), folder, "file")), given or {})


def test_inputs_make_sense_to_a_decoder(tmp_path: Path) -> None:
    """Embeddings of token ids, seen through a mask, with a cache of keys that is handed through."""
    draft = Draft("decoder")
    for name, shape in (("ids", ["batch", "sequence"]), ("mask", ["batch", "total_sequence_length"])):
        draft.input(name, shape, "int64")
    draft.input("past", ["batch", 2, "past_sequence_length", 8])
    embedded = draft.node("Gather", [draft.weight(Weight(k=50, n=64, block=32), "table", axis=1), "ids"], "embedded")
    seen = draft.node("Unsqueeze", [draft.node("Cast", ["mask"], "seen", to=1), draft.ints("axes", [2])], "column")
    draft.output(draft.node("Mul", [embedded, seen], "y"), ["batch", "sequence", 64])
    draft.output(draft.node("Identity", ["past"], "present"), ["batch", 2, "past_sequence_length", 8])
    inputs = inputs_of(draft, tmp_path, {"ids": (1, 400), "mask": (1, 400)})
    made = {name: (array.shape, array.dtype.name) for name, array in inputs.items()}
    assert made == {"ids": ((1, 400), "int64"), "mask": ((1, 400), "int64"), "past": ((1, 2, 0, 8), "float32")}
    assert set(inputs["mask"].flat) == {1}
    assert 40 < len(set(inputs["ids"].flat)) <= 50
    assert (inputs["ids"].min(), inputs["ids"].max() < 50) == (0, True)
    stock(str(tmp_path / "model.onnx")).run(None, inputs_of(draft, tmp_path))


@pytest.mark.parametrize(
    ("config", "last"),
    [
        ('{"model": {"decoder": {"head_size": 8}}}', 8),
        ('{"model": {"decoder": {"head_size": "8"}}}', 1),
        ('{"model": {"decoder": []}}', 1),
        ("[", 1),
        (None, 1),
    ],
)
def test_an_open_head_size_is_in_the_configuration_beside_the_model(config: str | None, last: int, tmp_path: Path) -> None:
    draft = Draft("open")
    past = draft.input("past", ["batch", 2, "past_sequence_length", "head"])
    draft.input("x", ["batch", "width"])
    draft.output(draft.node("Identity", [past], "y"), ["batch", 2, "past_sequence_length", "head"])
    if config is not None:
        (tmp_path / "genai_config.json").write_text(config)
    assert [array.shape for array in inputs_of(draft, tmp_path).values()] == [(1, 2, 0, last), (1, 1)]


def test_minus_one_is_an_open_dimension(tmp_path: Path) -> None:
    """So Paddle's models have it, and ONNX Runtime takes it."""
    draft = Draft("minus one")
    draft.output(draft.node("Identity", [draft.input("x", [-1, 3, -1])], "y"), [-1, 3, -1])
    assert inputs_of(draft, tmp_path)["x"].shape == (1, 3, 1)
    assert inputs_of(draft, tmp_path, {"x": (2, 3, 48)})["x"].shape == (2, 3, 48)
    with pytest.raises(UsageError, match=r"--input x=2x4x48: the model's x is \? x 3 x \?"):
        inputs_of(draft, tmp_path, {"x": (2, 4, 48)})


def test_inputs_that_cannot_be_made_up(tmp_path: Path) -> None:
    draft = Draft("bfloat16")
    draft.output(draft.node("Identity", [draft.input("x", ["m"], "bfloat16")], "y"), ["m"], "bfloat16")
    with pytest.raises(UsageError, match="input x is no tensor of numbers"):
        inputs_of(draft, tmp_path)
