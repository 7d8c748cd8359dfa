"""What the documentation says, and whether it is so: each claim is a page, words that stand there, and what has to hold."""

import fnmatch
import itertools
import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import conformance
import conformance.drawing
from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_TENSOR, Weight
from conformance.tools.expected import EXPECTED
from ort_qdq_plugin import Options, Reason, StockReason, create_session, inspect
from ort_qdq_plugin.fusion import constants
from ort_qdq_plugin.ort import runs
from ort_qdq_plugin.ort.keys import LOW_BIT_OPERATORS
from ort_qdq_plugin.report import Route
from tests import support
from tests.support import (
    CPU,
    ROOT,
    external_tensor,
    linear,
    made_report,
    mapped,
    quiet,
    raised,
    save,
    stack,
    stock,
    with_entries,
)

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def text_of(page: str) -> str:
    """A page, without line breaks."""
    return " ".join((ROOT / page).read_text("utf-8").split())


def rows_below(page: str, heading: str) -> list[list[str]]:
    """The cells of a table, from the line behind its heading on."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    rows = takewhile(lambda line: line.startswith("|"), lines[lines.index(heading) + 2 :])
    return [row.strip("| ").split(" | ") for row in rows]


def can_be_run(module: str) -> bool:
    is_folder = (ROOT / module.replace(".", "/")).is_dir()
    return find_spec(f"{module}.__main__" if is_folder else module) is not None


# ---- checks


def file_from_1_mib(folder: Path) -> None:
    # A column takes 656 bytes: 512 of weights, 128 of scales, 16 of zero points.
    for columns, in_file in ((1590, False), (1610, True)):
        spill = folder / str(columns)
        spill.mkdir()
        model = linear(Weight(k=1024, n=columns)).SerializeToString()
        session = create_session(model, quiet(), CPU, options=Options(strict=True, spill_dir=spill))
        assert (made_report(session).packed_bytes >= 1 << 20) == bool(mapped(spill)) == in_file


GROWN = """
import sys
from ort_qdq_plugin import Options, create_session

def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

create_session(sys.argv[1])
before = anonymous()
session = create_session(sys.argv[2], options=Options(strict=True, buffer=sys.argv[3], spill_dir=sys.argv[4]))
print(anonymous() - before, *(["inferred"] if "onnx.shape_inference" in sys.modules else []))
"""


def grown(warm: object, model: object, buffer: str, folder: Path) -> tuple[int, bool]:
    """Anonymous bytes that a load adds to a process which has loaded another model; whether it asked for shape inference."""
    size, *inferred = support.python(GROWN, warm, model, buffer, folder).stdout.split()
    return int(size), bool(inferred)


def memory_keeps_packed_bytes(folder: Path) -> None:
    warm, model = save(linear(Weight()), folder, "file", "warm"), save(stack(11, 1024), folder, "file")
    packed = inspect(model).packed_bytes
    assert round(packed / 1e6, 1) == 7.4
    in_memory, in_file = (grown(warm, model, buffer, folder)[0] for buffer in ("memory", "file"))
    assert 0.9 * packed < in_memory - in_file < 1.1 * packed
    assert in_file < 1.5 * packed


def packs_unless_cached(folder: Path) -> None:
    model = save(stack(2, 128), folder, "file")
    for options in (Options(), Options(cache_dir=folder / "cache")):
        reports = [made_report(create_session(model, quiet(), CPU, options=options)) for _ in range(2)]
        assert "pack" in reports[0].seconds
        assert ("pack" in reports[1].seconds) == (options.cache_dir is None)


def routes_are_those(folder: Path) -> None:
    """Those that a report may have. That sessions come by each of them is tested where the routes are."""
    rows = rows_below("docs/options.md", "| route | how ONNX Runtime got the model |")
    assert [row[0] for row in rows] == [f'`"{route}"`' for route in get_args(Route)]


def two_exceptions(folder: Path) -> None:
    draft = Draft("output_dtype", opset=23)
    weight = draft.weight(Weight(scale="float16"), output_dtype=onnx.TensorProto.FLOAT)
    draft.output(draft.node("MatMul", [draft.input("x", ["m", 128]), weight], "y"), ["m", 64])
    for number, model in enumerate((linear(Weight(scale="bfloat16")), draft.model())):
        path = save(model, folder, "file", str(number))
        assert raised(partial(stock, path)) is not None
        assert len(made_report(create_session(path, quiet(), CPU)).fused) == 1
    broken = linear(Weight())
    broken.graph.node[-1].input[0] = "nothing"
    outside = linear(Weight())
    support.external_tensor(outside, "w", location="../outside.data")
    (folder / "inside").mkdir()
    (folder / "outside.data").write_bytes(bytes(128 * 64))
    for stem, model in (("broken", broken), ("outside", outside)):
        path = save(model, folder / "inside", "file", stem)
        theirs = raised(partial(stock, path))
        assert theirs is not None
        assert raised(partial(create_session, path, quiet(), CPU)) == theirs


def headed(stated: bool) -> onnx.ModelProto:
    """A biased product behind an operator that is not followed, of whose output no shape is stated."""
    draft = Draft("cropped", opset=18)
    draft.input("x", [1, 64, "n"])
    draft.output("y", [1, "n", 64])
    features = draft.node("CenterCropPad", ["x", draft.ints("size", [64])], "features", axes=[1])
    rows = draft.node("Transpose", [features], "rows", perm=[0, 2, 1])
    product = draft.node("MatMul", [rows, draft.weight(Weight("int8", 64, 64, 0, "none"))], "product")
    draft.node("Add", [product, draft.floats("bias", [64])], "y")
    if stated:
        draft.declare("rows", [1, "n", 64])
    return draft.model()


def one_block_is_one_scale(_folder: Path) -> None:
    for element in ("uint4", "int8"):
        for block in (256, 4096, 65536):
            (entry,) = inspect(linear(Weight(element, k=64, n=256, block=block)).SerializeToString()).fused
            assert entry.packed_bytes < 2.1 * entry.stored_bytes


def inference_costs(folder: Path) -> None:
    warm = save(linear(Weight()), folder, "file", "warm")
    stated, unstated = (
        grown(warm, save(headed(stated), folder, "file", str(stated)), "auto", folder) for stated in (True, False)
    )
    assert (stated[1], unstated[1]) == (False, True)
    assert 6e6 < unstated[0] - stated[0] < 18e6


def commands_exist(_folder: Path) -> None:
    names = re.findall(r"^- `(\w+)`", conformance.__doc__ or "", re.MULTILINE)
    assert names
    assert [name for name in names if not can_be_run(f"conformance.{name}")] == []


def modules_are_those(_folder: Path) -> None:
    named = re.findall(r"^- `(\w+)`", conformance.drawing.__doc__ or "", re.MULTILINE)
    modules = [path.stem for path in (ROOT / "conformance/drawing").glob("*.py")]
    assert sorted(named) == sorted({*modules} - {"__init__"})


def tools_are_those(_folder: Path) -> None:
    """The page's rows are those of the check, each once; what is fused, and the reasons, are the check's."""
    verdicts = {f"{tool}: {name}": verdict for tool, rows in EXPECTED.items() for name, verdict in rows.items()}
    shown: list[str] = []
    for *_, becomes, globs in rows_below("docs/tools.md", "| tool and setting | writes | what becomes of it | rows |"):
        names = [name for glob in re.findall("`(.+?)`", globs) for name in fnmatch.filter(verdicts, glob)]
        told = set(re.findall(r"\w+", " ".join(verdicts[name] for name in names)))
        assert ("fused" in told) == ("fused" in becomes.lower()), globs
        assert {word for word in told if word.isupper()} == set(re.findall("`([A-Z_]+)`", becomes)), globs
        assert all(hasattr(Reason, word) or hasattr(StockReason, word) for word in told if word.isupper())
        shown += names
    assert sorted(shown) == sorted(verdicts)


def forks_wait_two_seconds(_folder: Path) -> None:
    assert runs._RUN_SECONDS == 2


def nan_vanishes(folder: Path) -> None:
    """By blocks of 32 and more, of every number of bits, in stock's sessions as in ours."""
    for element, block in itertools.product(("uint2", "uint4", "uint8"), (16, 32, 128)):
        model = save(linear(Weight(element, block=block)), folder, "bytes")
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


def values_within_the_bound(folder: Path) -> None:
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
        with (folder / "w.data").open("wb") as file:
            file.truncate(offset << 20)
        entries = inspect(save(model, folder, "file")).unfused
        assert [entry.bytes_added >> 22 for entry in entries if entry.bytes_added] == chosen
        assert [entry.reason is Reason.MEMORY for entry in entries] == [not entry.bytes_added for entry in entries]


def by_hand(element: str) -> onnx.ModelProto:
    """A product with a weight that is written out."""
    draft = Draft("by hand")
    draft.input("x", ["m", 128])
    draft.quantized("w", element, (128, 64))
    draft.floats("s", (64,))
    draft.write("c = Cast <to = 1> (w)  w_d = Mul(c, s)  y = MatMul(x, w_d)")
    draft.output("y", ["m", 64])
    return draft.model()


def written_out_is_folded_by_stock(folder: Path) -> None:
    options = quiet()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    stock(by_hand("int8").SerializeToString(), options)
    optimized = onnx.load(folder / "optimized.onnx")
    assert [node.op_type for node in optimized.graph.node] == ["MatMul"]
    assert {tensor.data_type for tensor in optimized.graph.initializer} == {onnx.TensorProto.FLOAT}


def written_out_at_low_levels(_folder: Path) -> None:
    for element, level, fused in (("int8", 4, 1), ("int8", 0, 0), ("int4", 4, 1), ("int4", 0, 1)):
        report = inspect(by_hand(element).SerializeToString(), options=Options(accuracy_level=level))
        assert len(report.fused) == fused
        for entry in report.unfused:
            assert (entry.bytes_per_run, entry.bytes_added, entry.bytes_folded) == (0, 0, 4 * 128 * 64)


def other_forms_are_told(_folder: Path) -> None:
    """Operators of each row of the page are told."""
    for row in rows_below("docs/troubleshooting.md", "| operators | what a model with them is |"):
        for op in re.findall(r"`(\w+)`", row[0]):
            draft = Draft(op)
            draft.quantized("w", "uint8", (16, 16))
            draft.output(draft.node(op, ["w"], "y"), None)
            report = inspect(draft.model().SerializeToString(), check=False)
            # Models that hold low-bit operators are parsed, since they may be handed over without a copy.
            reason = StockReason.NOT_FUSIBLE if op in LOW_BIT_OPERATORS else StockReason.OTHER_FORM
            assert (report.stock_reason, op in report.stock_detail) == (reason, True)


def expressions_are_bounded(_: Path) -> None:
    bounds = (constants._MAX_DEPTH, constants._MAX_STEPS, constants._GROWTH, constants._GROWTH_BYTES)
    assert bounds == (64, 256, 16, 64 << 20)


# A page, words on it, and what has to hold.
CLAIMS: list[tuple[str, str, Callable[[Path], None]]] = [
    ("docs/troubleshooting.md", "below 1 MiB in all", file_from_1_mib),
    ("docs/options.md", '`"auto"` (a file, unless they are below 1 MiB)', file_from_1_mib),
    ("docs/options.md", "no more bytes than the model stores, or 128 MiB if that is more", values_within_the_bound),
    ("docs/how-it-works.md", "as the model stores, or 128 MiB if that is more", values_within_the_bound),
    ("docs/troubleshooting.md", "of 7.4 MB of packed weights takes 16.7 MB of anonymous", memory_keeps_packed_bytes),
    ("docs/troubleshooting.md", "without [the cache](cache.md): each packs a copy of its own", packs_unless_cached),
    ("docs/how-it-works.md", "64 nodes deep, take 256 steps for an element, and have 16 times", expressions_are_bounded),
    ("README.md", "each process that loads a model packs it again", packs_unless_cached),
    ("docs/options.md", "| route | how ONNX Runtime got the model |", routes_are_those),
    ("docs/how-it-works.md", "is refused here too, with its own error", two_exceptions),
    ("docs/how-it-works.md", "There are two exceptions", two_exceptions),
    ("docs/how-it-works.md", "with blocks of 32 or more, a NaN in the input vanishes", nan_vanishes),
    ("docs/options.md", "At level 4 [a NaN in the input vanishes]", nan_vanishes),
    ("docs/how-it-works.md", "makes floats of such a weight when it loads the model", written_out_is_folded_by_stock),
    ("docs/how-it-works.md", "products with weights of 8 bits are left to ONNX Runtime, whose", written_out_at_low_levels),
    ("docs/troubleshooting.md", "| operators | what a model with them is |", other_forms_are_told),
    ("docs/how-it-works.md", "at least as long as K, it counts as one scale for each column", one_block_is_one_scale),
    ("docs/troubleshooting.md", "about 11 MB of memory that stays", inference_costs),
    ("docs/robustness.md", "within 2 seconds is waited for no longer", forks_wait_two_seconds),
    ("docs/troubleshooting.md", "that did not end within 2 seconds", forks_wait_two_seconds),
    ("docs/tools.md", "Each row is checked by", tools_are_those),
    ("conformance/__init__.py", "Each of these is one subject, and one command", commands_exist),
    ("conformance/drawing/__init__.py", "Models, drawn node by node", modules_are_those),
]
# What only a measurement shows, and the command that a page names for it.
MEASURED = [
    ("docs/troubleshooting.md", "less than a tenth of a second of processor time", "`python -m benchmarks.first_load`"),
    ("docs/troubleshooting.md", "0.3 times the time of level 0 for one row", "(measuring.md#two-accuracy-levels)"),
    ("docs/measuring.md", "Which [accuracy level]", "ort-qdq bench level0.onnx"),
    ("docs/measuring.md", "0.56 times the time (44 % less)", "`python -m benchmarks.cached_load`"),
    (
        "docs/measuring.md",
        "1230 ms and 4.4 GB against 16 ms",
        "`python -m benchmarks.load --layers 4 --variants uint4-nmajor`",
    ),
    ("docs/measuring.md", "861 MB in 200 MB", "`python -m benchmarks.memory_limit`"),
]


@pytest.mark.parametrize(("page", "words", "holds"), CLAIMS)
def test_claims_hold(page: str, words: str, holds: Callable[[Path], None], tmp_path: Path) -> None:
    assert words in text_of(page)
    holds(tmp_path)


@pytest.mark.parametrize(("page", "words", "command"), MEASURED)
def test_pages_name_the_command_that_measures(page: str, words: str, command: str) -> None:
    assert words in text_of(page)
    assert command in text_of(page)
