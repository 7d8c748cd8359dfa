"""The code on the pages runs, and prints what stands there. What cannot run here has a reason."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, Weight
from ort_qdq_plugin import create_session, deactivate, report_of
from tests.claims.pages import PAGES, all_blocks
from tests.cli.support import Here
from tests.genai import small_model
from tests.support import CPU, IN_PLACE, START, environment, linear, mixed, python, quiet, save, unquantized

BLOCKS = {block.name: block for page in PAGES for block in all_blocks(page)}


class Shell(NamedTuple):
    """What becomes of a block of commands."""

    prints: str  # what is in what it prints
    makes: tuple[str, ...] = ()  # files
    in_place_of: Mapping[str, str] = {}  # what stands for something else, and what it stands for here
    needs: str = ""  # a module
    is_slow: bool = False  # it starts many processes


SHELL = {
    "README.md: ORT_QDQ_PLUGIN=1 ORT_QDQ_PLUGIN_LOG=info python program.py": Shell(r"\]: model.onnx: \w.*: 1 fused"),
    "README.md: ort-qdq inspect MODEL && ort-qdq bench MODEL --plot memory.png && ort-qdq export MODEL FUSED": Shell(
        "all fused",
        ("memory.png", "fused.onnx"),
        {"bench MODEL": "bench MODEL --runs 1", "MODEL": "model.onnx", "FUSED": "fused.onnx"},
        "matplotlib",
        is_slow=True,
    ),
    "docs/cache.md: ort-qdq prepare model.onnx prepared --share-weights": Shell("prepared", ("image.tar", "prepared")),
    "docs/command-line.md: ort-qdq inspect model.onnx": Shell("all fused"),
    "docs/command-line.md: ort-qdq bench model.onnx --peers stock,qoperator --runs 5 --plot memory.png": Shell(
        "qoperator", ("memory.png",), {"--runs 5": "--runs 1"}, "matplotlib", is_slow=True
    ),
    "docs/command-line.md: ort-qdq run [--no-telemetry] -- python program.py": Shell(
        "1 fused", in_place_of={"[--no-telemetry]": "--no-telemetry"}
    ),
    "docs/command-line.md: ort-qdq export model.onnx fused.onnx --external-data": Shell(
        "1 fused", ("fused.onnx", "fused.onnx.data", "phi-3-mini-fused/genai_config.json")
    ),
    "docs/command-line.md: ort-qdq warm model.onnx --dir /var/cache/models": Shell(
        "is in the cache now", ("cache",), {"/var/cache/models": "cache"}
    ),
    "docs/command-line.md: ort-qdq prepare model.onnx prepared": Shell("prepared", ("prepared",)),
    "docs/measuring.md: ort-qdq export model.onnx level0.onnx --external-data --accuracy-level 0": Shell(
        "steady run", ("level0.onnx", "level0.onnx.data"), {"3072": "128 --runs 1"}, is_slow=True
    ),
}
PYTHON = [
    "README.md: import numpy as np",
    "docs/cache.md: from ort_qdq_plugin import Options, create_session, warm",
    "docs/genai.md: import onnxruntime_genai as og",
    "docs/faq.md: import onnxruntime",
    "docs/options.md: import sys",
]
# Blocks of what is printed. Each has a test below.
PRINTED = [
    "docs/command-line.md: #  kind       K x N  bits  block  layout   stored  outcome   per run",
    "docs/options.md: ort-qdq-plugin[4711]: /models/encoder.onnx: borrowed: 36 fused, 6.0 MB packed and 0.0 MB in place "
    "instead of 42.5 MB in float; ...",
    "docs/options.md: borrowed: 1 fused, 1 dequantized once, 0.2 MB packed and 0.0 MB in place instead of 0.5 MB in float; "
    "open 0.00 s, ...",
]
DOWNLOADS = "it downloads packages"
# What cannot run in a test, and why.
NOT_RUN = {
    "README.md: pip install '.[cpu]'": DOWNLOADS,
    "README.md: pip install '.[cpu]' && python -m ort_qdq_plugin": f"{DOWNLOADS}: `.ci/run install` runs it",
    "README.md: pip install '.[cpu,test]' && python -m pytest": f"{DOWNLOADS}: `.ci/run suite` runs it",
    "CONTRIBUTING.md: python -m venv .venv && . .venv/bin/activate": DOWNLOADS,
    "CONTRIBUTING.md: ruff check . && ruff format .": "it is what `.ci/run lint` does, and all of `.ci/run`",
    "docs/genai.md: pip install '.[genai]' && python examples/chat.py FOLDER": f"{DOWNLOADS}, and a model that chats",
    "docs/faq.md: pip uninstall ort-qdq-plugin": "it would end the tests",
    "docs/faq.md: pip install '.[cpu,docs]' && python docs/reference.py reference": f"{DOWNLOADS}: `.ci/run docs` does it",
    "docs/how-it-works.md: model.onnx ──open──► skeleton ──match──► fusions ──plan──► layout ──pack──► packed buffer ──hand "
    "over──► InferenceSession": "a drawing",
    "docs/how-it-works.md: create_session(path)                           session.py": "a drawing",
    "docs/measuring.md: systemd-run --scope -p MemoryMax=200M env ORT_QDQ_PLUGIN=1 ORT_QDQ_PLUGIN_SHARE_WEIGHTS=1 "
    "ORT_QDQ_PLUGIN_CACHE_DIR=CACHE python program.py": "it needs a system that systemd has started",
    "docs/options.md: model.onnx: packing [####------]  45% of 2.4 GB, 3 s": "it stands on a terminal for a moment",
    "docs/platforms.md: import os, tempfile": "it needs wine",
    "docs/platforms.md: debootstrap --variant=minbase --include=python3.14-venv,ca-certificates forky ROOT": DOWNLOADS,
    "docs/releasing.md: pip install '.[cpu,docs]' && python docs/reference.py reference": DOWNLOADS,
    "docs/releasing.md: .ci/run --long --real --tools": DOWNLOADS,
    "docs/releasing.md: DIST=dist .ci/run package": DOWNLOADS,
    'docs/releasing.md: python -m venv /tmp/try && /tmp/try/bin/pip install "$(echo dist/*.whl)[cpu]" && '
    "/tmp/try/bin/ort-qdq demo": DOWNLOADS,
    'docs/releasing.md: git tag -a v0.1.0 -m "Version 0.1.0" && git push origin v0.1.0': "it makes a release",
}


def test_every_block_runs_or_has_a_reason() -> None:
    assert sorted(BLOCKS) == sorted([*SHELL, *PYTHON, *PRINTED, *NOT_RUN])
    assert len(BLOCKS) == sum(len(all_blocks(page)) for page in PAGES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: with models, and a program that loads one."""
    monkeypatch.chdir(tmp_path)
    small_model.write_model(tmp_path / "phi-3-mini-qdq")
    onnx.save_model(
        linear(Weight()), "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=100
    )
    (tmp_path / "program.py").write_text(f"{START}import onnxruntime\nonnxruntime.InferenceSession('model.onnx')\n")
    return tmp_path


@pytest.mark.parametrize("name", PYTHON)
def test_python_runs(name: str, folder: Path) -> None:
    code = BLOCKS[name].code.replace("/var/cache/models", str(folder / "cache"))
    names: dict[str, object] = {}
    if "onnxruntime_genai" in code:
        pytest.importorskip("onnxruntime_genai")
        code = code.replace("tokenizer = og.Tokenizer(model)\n", "")  # the small model has none
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, names)
    finally:
        deactivate()
    if "session" in names:
        assert [len(report.fused) for report in (report_of(names["session"]),) if report is not None] == [1]
    assert ("fused" in printed.getvalue()) == ("print" in code)
    assert ("cache_dir" in code) == (folder / "cache").exists()


@pytest.mark.needs("a shell")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * run.is_slow) for name, run in SHELL.items()])
def test_commands_run(name: str, folder: Path) -> None:
    block, code = SHELL[name], BLOCKS[name].code
    if block.needs:
        pytest.importorskip(block.needs)
    for words, meaning in block.in_place_of.items():
        assert words in code
        code = code.replace(words, meaning)
    commands = folder / "bin"
    commands.mkdir()
    for command, arguments in (("python", ""), ("ort-qdq", "-m ort_qdq_plugin")):
        (commands / command).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (commands / command).chmod(0o755)
    found = environment(PATH=f"{commands}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=found, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(block.prints, done.stdout + done.stderr)
    assert [made for made in block.makes if not Path(made).exists()] == []


def test_the_table_that_inspect_prints(folder: Path, here: Here) -> None:
    Path("model.onnx").write_bytes(mixed())
    assert here.said("inspect", "model.onnx") == BLOCKS[PRINTED[0]].code


def like(name: str) -> str:
    """A pattern for what is printed: "..." is anything, numbers are any, and models have names of their own."""
    pattern = re.escape(BLOCKS[name].code).replace(re.escape("..."), ".*")
    return re.sub(r"/models/\w+", r"\\w+", re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", pattern))


@IN_PLACE
def test_the_lines_of_the_log(folder: Path) -> None:
    save(unquantized(), folder, "file", "detector")
    code = f"{START}import onnxruntime\nfor name in ('model', 'detector'): onnxruntime.InferenceSession(name + '.onnx')"
    done = python(code, cwd=folder, variables={"ORT_QDQ_PLUGIN": "1", "ORT_QDQ_PLUGIN_LOG": "info"})
    assert re.fullmatch(like(PRINTED[1]), done.stderr)


@IN_PLACE
def test_the_report(folder: Path) -> None:
    draft = Draft("report")
    draft.dequantize("u", (256, 512), axis=0)
    draft.dequantize("h", (512, 64), axis=0, block=PER_CHANNEL, element="int8")
    draft.input("x", ["m", 256])
    draft.node("MatMul", ["x", "u_d"], "up")
    draft.output(draft.node("MatMul", ["up", "h_d"], "y"), ["m", 64])
    for node in draft.nodes:
        node.name = {"up_node": "up", "h_d_node": "head.dq"}.get(node.name, node.name)
    session = create_session(draft.model().SerializeToString(), quiet(), CPU)
    assert re.fullmatch(like(PRINTED[2]), f"{report_of(session)}\n")
