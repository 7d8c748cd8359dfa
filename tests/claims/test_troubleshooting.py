"""troubleshooting.md."""

import ast
import re
from pathlib import Path

import onnx

import ort_qdq_plugin
from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, create_session, inspect
from ort_qdq_plugin.ort import runs
from ort_qdq_plugin.ort.keys import LOW_BIT_OPERATORS
from tests import support
from tests.claims.pages import rows_below
from tests.claims.registry import claim
from tests.support import (
    CPU,
    IN_PLACE,
    linear,
    made_report,
    quiet,
    save,
    stack,
)

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


@IN_PLACE
@claim("docs/troubleshooting.md", "of 7.4 MB of packed weights takes 16.7 MB of anonymous")
def test_memory_keeps_packed_bytes(tmp_path: Path) -> None:
    warm, model = save(linear(Weight()), tmp_path, "file", "warm"), save(stack(11, 1024), tmp_path, "file")
    packed = inspect(model).packed_bytes
    assert round(packed / 1e6, 1) == 7.4
    in_memory, in_file = (grown(warm, model, buffer, tmp_path)[0] for buffer in ("memory", "file"))
    assert 0.9 * packed < in_memory - in_file < 1.1 * packed
    assert in_file < 1.5 * packed


@claim("docs/troubleshooting.md", "without [the cache](cache.md): each packs a copy of its own")
@claim("README.md", "each process that loads a model packs it again")
def test_packs_unless_cached(tmp_path: Path) -> None:
    model = save(stack(2, 128), tmp_path, "file")
    for options in (Options(), Options(cache_dir=tmp_path / "cache")):
        reports = [made_report(create_session(model, quiet(), CPU, options=options)) for _ in range(2)]
        assert "pack" in reports[0].seconds
        assert ("pack" in reports[1].seconds) == (options.cache_dir is None)


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


@claim("docs/troubleshooting.md", "about 11 MB of memory that stays")
def test_inference_costs(tmp_path: Path) -> None:
    warm = save(linear(Weight()), tmp_path, "file", "warm")
    stated, unstated = (
        grown(warm, save(headed(stated), tmp_path, "file", str(stated)), "auto", tmp_path) for stated in (True, False)
    )
    assert (stated[1], unstated[1]) == (False, True)
    assert 6e6 < unstated[0] - stated[0] < 18e6


def warnings() -> set[str]:
    """All warnings of the package, with something filled in."""
    sources = [path.read_text("utf-8") for path in Path(ort_qdq_plugin.__file__).parent.rglob("*.py")]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    texts = [str(ast.literal_eval(call.args[0])) for call in calls if ast.unparse(call.func) in ("log.warning", "tell")]
    named = [re.sub("^%s is", "ORT_QDQ_PLUGIN is" if "1 or 0" in text else "ORT_QDQ_PLUGIN_X is", text) for text in texts]
    return {re.sub(r"%\w", "X", text) for text in named if text != "%s"}


@claim("docs/troubleshooting.md", "| warning | meaning |")
def test_every_warning_has_a_row() -> None:
    rows = rows_below("docs/troubleshooting.md", "| warning | meaning |")
    told = {entry for row in rows for entry in re.findall("`([^`]+)`", row[0])}
    told.add("loading with stock ONNX Runtime, without ort-qdq-plugin: ...")  # what the table above is of
    patterns = [re.escape(entry).replace(r"\.\.\.", ".*") for entry in told]
    assert not {text for text in warnings() if not any(re.fullmatch(pattern, text) for pattern in patterns)}
    assert len(warnings()) > len(rows)


@claim("docs/troubleshooting.md", "| operators | what a model with them is |")
def test_other_forms_are_told() -> None:
    """Operators of each row of the page are told."""
    for row in rows_below("docs/troubleshooting.md", "| operators | what a model with them is |"):
        for op in re.findall(r"`(\w+)`", row[0]):
            draft = Draft(op)
            draft.quantized("w", "uint8", (16, 16))
            draft.output(draft.node(op, ["w"], "y", domain=MS), None)
            report = inspect(draft.model().SerializeToString(), check=False)
            # Models that hold low-bit operators are parsed, since they may be handed over without a copy.
            reason = StockReason.NOT_FUSIBLE if op in LOW_BIT_OPERATORS else StockReason.OTHER_FORM
            assert (report.stock_reason, op in report.stock_detail) == (reason, True)


@claim("docs/robustness.md", "within 2 seconds is waited for no longer")
@claim("docs/troubleshooting.md", "that did not end within 2 seconds")
def test_forks_wait_two_seconds() -> None:
    assert runs._RUN_SECONDS == 2
