"""What ONNX Runtime says of models without weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto

from conformance.drawing.draft import Draft
from ort_qdq_plugin.ort import refusal
from ort_qdq_plugin.ort.refusal import refusal_of
from tests.support import python, save


def text_in(draft: Draft) -> None:
    """Of onnxruntime-extensions' domain."""
    draft.input("x", [1], "float")
    draft.node("StringLength", [draft.node("Cast", ["x"], to=TensorProto.STRING)], "y", domain="ai.onnx.contrib")


def pool(draft: Draft) -> None:
    draft.node("MaxPool", [draft.input("x", [1, 1, 8, 8])], "y", kernel_shape=[2, 2], auto_pad="NONSENSE")


def relu(op: str = "Relu", kind: str = "float") -> Callable[[Draft], object]:
    return lambda draft: draft.node(op, [draft.input("x", [1], kind)], "y")


# How a model is drawn, and words of what is said against it.
MODELS: dict[str, tuple[Callable[[Draft], object], bool, str | None]] = {
    "nothing": (relu(), False, None),
    "no operator": (relu("Nonsense"), False, "No Op registered for Nonsense"),
    "no kernel": (relu(kind="bfloat16"), False, "Could not find an implementation"),
    "a kernel that cannot be made": (pool, False, "Unknown AutoPadType"),
    "without the library": (text_in, False, "ai.onnx.contrib"),
    "with the library": (text_in, True, None),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_refused(name: str) -> None:
    draw, extensions, words = MODELS[name]
    if extensions:
        pytest.importorskip("onnxruntime_extensions")
    draft = Draft(name)
    draw(draft)
    kind = "bfloat16" if name == "no kernel" else "int64" if "library" in name else "float"
    draft.output("y", None, kind)
    said = refusal_of(draft.model().SerializeToString(), extensions=extensions)
    assert (said is None) == (words is None), said
    assert words is None or (said is not None and words in said)


FOLDS = """
import re, sys
from pathlib import Path
from ort_qdq_plugin.ort import refusal
from ort_qdq_plugin.ort.refusal import refusal_of
assert refusal_of(Path(sys.argv[1]).read_bytes()) is None
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.needs("sizes")
def test_constants_are_not_folded(tmp_path: Path) -> None:
    """Folding would make half a gigabyte of zeros."""
    draft = Draft("folds")
    zeros = draft.node("ConstantOfShape", [draft.ints("shape", [1 << 27])])
    draft.output(draft.node("ReduceSum", [zeros], "y", keepdims=0), None)
    done = python(FOLDS, save(draft.model(), tmp_path, "file"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000


def test_other_providers_may_have_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Draft("cuda")
    relu(kind="bfloat16")(draft)
    draft.output("y", None, "bfloat16")
    model = draft.model().SerializeToString()
    assert refusal_of(model) is not None
    monkeypatch.setattr(refusal, "available_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert refusal_of(model) is None
