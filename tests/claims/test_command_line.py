"""command-line.md."""

import json
import os
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, create_session, export, genai, inspect
from ort_qdq_plugin.cli import bench, child, demo_model
from ort_qdq_plugin.cli import run as run_module
from ort_qdq_plugin.cli.inputs import random_inputs
from ort_qdq_plugin.cli.main import _COMMANDS
from ort_qdq_plugin.cli.measure import job_for
from ort_qdq_plugin.load.export import _MAX_INLINE_BYTES
from tests.claims.pages import rows_below, text_of
from tests.claims.registry import claim
from tests.cli.support import Here
from tests.genai import small_model
from tests.support import (
    CPU,
    ROOT,
    huge,
    linear,
    quiet,
    result,
    save,
    saved_nodes,
    stack,
    stock,
)  # fmt: skip

PAGE = "docs/command-line.md"


@claim(PAGE, "`ort-qdq COMMAND`, or `python -m ort_qdq_plugin COMMAND`.")
@claim(PAGE, "Each has `--help` with an example.")
def test_commands_and_their_help(here: Here) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ort-qdq": "ort_qdq_plugin.cli.main:main"}
    assert {*_COMMANDS} == {
        path.stem for path in (ROOT / "ort_qdq_plugin/cli").glob("*.py") if "\nEXAMPLE = " in path.read_text()
    }
    for command in _COMMANDS:
        assert f"Example: ort-qdq {command}" in " ".join(here.said(command, "--help").split())
        assert f"`{command}`" in text_of(PAGE) or f"ort-qdq {command}" in text_of(PAGE) or f"## {command}" in text_of(PAGE)


@claim(PAGE, "`'ort-qdq-plugin[plot]'`; without the first, tables are plain text, as they are where the output is not")
def test_what_extras_bring(mixed_model: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {re.split("[>=]", need)[0] for need in extras["cli"] + extras["plot"]} == {"rich", "shtab", "matplotlib"}
    redirected = here.said("inspect", mixed_model)
    assert "\x1b" not in redirected
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert here.said("inspect", mixed_model) == redirected
    monkeypatch.setattr("ort_qdq_plugin.cli.console.find_spec", lambda _: None)
    assert "ort-qdq-plugin[plot]" in here.refused("bench", mixed_model, "--plot", "memory.png")


@claim(PAGE, "`ort-qdq --print-completion bash` (or zsh, tcsh) prints what the shell has to read to complete commands.")
@claim(PAGE, "It needs the first of these extras.")
def test_completion(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh", "tcsh"):
        assert "inspect" in here.said("--print-completion", shell)
    monkeypatch.setattr("ort_qdq_plugin.cli.console.find_spec", lambda _: None)
    assert "ort-qdq-plugin[cli]" in here.refused("--print-completion", "bash")


@claim(PAGE, "Exit codes: 0 good, 1 a finding, 2 bad usage, unreadable input or")
@claim(PAGE, "with one line on stderr that names the")
@pytest.mark.parametrize("command", ["inspect", "bench", "export", "warm", "prepare", "cache"])
def test_exit_codes(command: str, tmp_path: Path, here: Here) -> None:
    """Of what is not there, what is no model, and what nobody understands."""
    nothing, garbage = tmp_path / "nothing.onnx", tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\xff" * 1000)
    behind: dict[str, list[object]] = {
        "export": [tmp_path / "out"], "prepare": [tmp_path / "out"], "warm": ["--dir", tmp_path / "cache"],
    }  # fmt: skip
    for path in (nothing, garbage):
        given = ["list", "--dir", path] if command == "cache" else [path, *behind.get(command, [])]
        assert str(path) in here.refused(command, *given)
        assert not (tmp_path / "out").exists()
    assert here(command, "--nonsense").code == 2


# ---- inspect


@claim(PAGE, "One row for all weights of the same kind; those that cost most on each run come first")
@claim(PAGE, "`stored` and `per run` are sums over the row")
@claim(PAGE, "`--unfused` shows only what stays, by name, and the exit code is 1 if that costs anything.")
def test_rows_of_inspect(tmp_path: Path, here: Here) -> None:
    draft = Draft("costs")
    draft.input("x", ["m", 128])
    for number, width in enumerate((64, 64, 128)):
        draft.output(draft.weight(Weight(k=1, n=width, block=-1, element="int8"), f"c{number}"), [1, width])
    draft.output(draft.node("MatMul", ["x", draft.weight(Weight())], "y"), ["m", 64])
    path = save(draft.model(), tmp_path, "file")
    rows = [re.split("  +", line.strip()) for line in here.said("inspect", path).splitlines()[1:4]]
    cells = [(row[0], row[2], row[-1]) for row in rows]
    assert cells == [("2", "1 x 64", "512 B"), ("1", "1 x 128", "512 B"), ("1", "128 x 64", "-")]
    assert rows[0][-3] == "138 B"  # twice 64 and a float and a zero point
    said = here.said("inspect", "--unfused", path, code=1)
    assert ("MatMul" in said, "    c0_d_node\n" in said) == (False, True)
    assert here("inspect", "--unfused", save(linear(Weight()), tmp_path, "file", "all")).code == 0


@claim(PAGE, "No weight is read, so it takes about a millisecond for each product however large the model is.")
def test_inspect_reads_no_weight(tmp_path: Path, here: Here) -> None:
    assert json.loads(here.said("inspect", "--json", huge(tmp_path)))["fused"][0]["stored_bytes"] > 20e9
    report = inspect(stack(200, 64).SerializeToString(), check=False)
    assert sum(report.seconds.values()) < 2


@claim(PAGE, "It is also 1 if ONNX Runtime refuses the model, which is asked without any weights unless")
@claim(PAGE, "`--json` prints the [report](options.md#reports).")
def test_models_that_are_refused(tmp_path: Path, here: Here) -> None:
    model = linear(Weight())
    model.opset_import[0].version = 20
    path = save(model, tmp_path, "file")
    here.said("inspect", path, code=1)
    here.said("inspect", "--no-check", path)
    plain = json.loads(here.said("inspect", "--json", "--no-check", path))
    told = json.loads(json.dumps(inspect(path, check=False).to_dict()))
    assert {**plain, "seconds": {}} == {**told, "model": path, "seconds": {}}


@claim(PAGE, "Of a folder with a `genai_config.json`, all models are shown that it names")
def test_models_of_a_folder(tmp_path: Path, here: Here) -> None:
    folder = small_model.write_model(tmp_path / "llama")
    assert f"{folder / 'model.onnx'}:\n" in here.said("inspect", folder)


# ---- bench


@claim(PAGE, "| peer | what is loaded |")
@claim(PAGE, "always measured |")
def test_peers() -> None:
    told = re.findall("`(.+?)`", " ".join(row[0] for row in rows_below(PAGE, "| peer | what is loaded |")))
    assert told == [*bench._PEERS, bench._OURS]


@claim(PAGE, "of the first run, and of later ones (up to nine; their median);")
def test_later_runs(small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child._Usage, "now", lambda: SimpleNamespace(cpu=0.0))
    calls: list[None] = []
    _, seconds = child._outputs({"runs": job_for(small, tmp_path / "inputs.npz", {}).runs}, [calls.append], None)
    assert len(calls) == 1 + 9
    assert seconds["steady"] > 0


@claim(PAGE, "The exit code is 1 if a way failed.")
def test_a_way_that_fails(small: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"ours": type("Peer", (), {"failure": "it broke", "runs": []})()}
    monkeypatch.setattr(bench, "compare", lambda *_: failed)
    monkeypatch.setattr(bench, "_differences", lambda peers: dict.fromkeys(peers))
    monkeypatch.setattr(bench, "say_peers", lambda *_: None)
    assert here("bench", small).code == 1


@claim(PAGE, "A dimension that is left open is 1, but 0 if it is the length of a past,")
@claim(PAGE, "Integers are rows of the table that they look up, and 1 elsewhere.")
@claim(PAGE, "`--input ids=1x128` gives a shape.")
def test_inputs_that_are_made_up(tmp_path: Path) -> None:
    folder = small_model.write_model(tmp_path / "llama")
    inputs = random_inputs(str(folder / "model.onnx"), {"input_ids": (1, 128)})
    shapes = {name: array.shape for name, array in inputs.items()}
    past = "past_key_values.0"
    assert shapes.pop("input_ids") == (1, 128)
    assert shapes == {"attention_mask": (1, 1), f"{past}.key": (1, 1, 0, 4), f"{past}.value": (1, 1, 0, 4)}
    assert (inputs["input_ids"].max() < 64, len({*inputs["input_ids"].flat}) > 32) == (True, True)
    assert inputs["attention_mask"].tolist() == [[1]]
    assert bench._shape("ids=1x128") == ("ids", (1, 128))


@claim(
    PAGE,
    "a decoder as Phi-3-mini is written, of as many of its 32 layers as fit (`--layers` says how many).",
)
def test_the_decoder_of_bench() -> None:
    assert demo_model.PHI_3_MINI == (32, 3072, 8192, 32064)


# ---- run


PROGRAM = """import sys, os
print(os.environ["ORT_QDQ_PLUGIN"], os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.exit(int(sys.argv[1])) if sys.argv[1] != "SIGKILL" else os.kill(os.getpid(), 9)
"""


@claim(PAGE, "The exit code is the program's own; 128 and the signal's number if a signal ended it.")
@claim(PAGE, "from the program and its children: they get `ORT_DISABLE_TELEMETRY=1`")
def test_programs_that_are_run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    here = Here(capfd)
    for flags, ends, code, telemetry in (([], "7", 7, "None"), (["--no-telemetry"], "SIGKILL", 137, "1")):
        done = here("run", *flags, "--", sys.executable, "-u", "-c", PROGRAM, ends)
        assert (done.code, done.out) == (code, f"1 {telemetry}\n")


@claim(PAGE, "All other commands have that themselves, unless you set the variable.")
def test_telemetry_of_commands(small: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, then in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        if given is not None:
            monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given)
        here.said("inspect", small)
        assert os.environ["ORT_DISABLE_TELEMETRY"] == then


@claim(PAGE, "Where `/sys/kernel/mm/transparent_hugepage/enabled` says `madvise`, the program's heap also gets huge")
@claim(PAGE, "(`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`), unless that is set already")
def test_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path("/sys/kernel/mm/transparent_hugepage/enabled") == run_module._HUGE_PAGES
    enabled = tmp_path / "enabled"
    monkeypatch.setattr(run_module, "_HUGE_PAGES", enabled)
    for said, given, wanted in (
        ("always [madvise] never", "", "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", "", ""),
    ):
        enabled.write_text(said)
        monkeypatch.setenv("GLIBC_TUNABLES", given)
        assert run_module._environment("log", False)["GLIBC_TUNABLES"] == wanted


# ---- export


@claim(PAGE, "`MatMulNBits` nodes in place of `DequantizeLinear` and products.")
@claim(PAGE, "and it computes what a session of this package does")
@claim(PAGE, "Weights are inside the file, or, with `--external-data`, in `fused.onnx.data`; from 2 GiB on they have")
def test_exported_models(large: str, tmp_path: Path, here: Here) -> None:
    ours = result(create_session(large, quiet(), CPU))
    for flags in ([], ["--external-data"]):
        folder = tmp_path / f"out{len(flags)}"
        folder.mkdir()
        here.said("export", large, folder / "fused.onnx", *flags)
        assert (folder / "fused.onnx.data").exists() == bool(flags)
        nodes = saved_nodes(folder / "fused.onnx")
        assert ({*nodes}, len(nodes["MatMulNBits"])) == ({"MatMulNBits", "Tanh"}, 3)
        np.testing.assert_array_equal(result(stock(str(folder / "fused.onnx"))), ours)
    assert _MAX_INLINE_BYTES == (2 << 30) - 1


@claim(PAGE, "Weights that no fused operator takes stay in integers. With `--dequantize-once`, or from Python with")
def test_weights_that_stay_in_integers(mixed_model: str, tmp_path: Path, here: Here) -> None:
    here.said("export", mixed_model, tmp_path / "integers.onnx")
    here.said("export", mixed_model, tmp_path / "flag.onnx", "--dequantize-once")
    export(mixed_model, tmp_path / "python.onnx", options=Options(dequantize_once="always"))
    found = {path.stem: "DequantizeLinear" in saved_nodes(path) for path in tmp_path.iterdir()}
    assert found == {"integers": True, "flag": False, "python": False}


@claim(PAGE, "Existing files are kept unless you say `--force`")
@claim(PAGE, "`--force` replaces a folder only if it has a `genai_config.json` as well.")
@claim(PAGE, "From Python it is `ort_qdq_plugin.genai.export`, which does not need onnxruntime-genai.")
def test_what_is_there_is_kept(small: str, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    out = tmp_path / "fused.onnx"
    out.write_text("mine")
    assert "--force" in here.refused("export", small, out)
    assert out.read_text() == "mine"
    here.said("export", small, out, "--force")
    folder, taken = small_model.write_model(tmp_path / "llama"), tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    here.refused("export", folder, taken)
    here.refused("export", folder, taken, "--force")
    assert [path.name for path in taken.iterdir()] == ["mine"]
    (taken / "genai_config.json").touch()
    here.said("export", folder, taken, "--force")
    assert not (taken / "mine").exists()
    assert list(genai.export(folder, tmp_path / "python")) == ["model.onnx"]


@claim(PAGE, "is fused, with the accuracy level that it says, and has its weights in a file beside it. All else is")
def test_folders_that_are_exported(tmp_path: Path, here: Here) -> None:
    folder, out = small_model.write_model(tmp_path / "llama"), tmp_path / "out"
    (folder / "tokenizer.json").write_text("{}")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["session.qdq_matmulnbits_accuracy_level"] = "1"
    (folder / "genai_config.json").write_text(json.dumps(config))
    here.said("export", folder, out)
    (node,) = saved_nodes(out / "model.onnx")["MatMulNBits"]
    assert onnx.helper.get_node_attr_value(node, "accuracy_level") == 1
    made = {path.name for path in out.iterdir()}
    assert made == {"genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"}
