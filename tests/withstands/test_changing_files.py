"""Files that change while their weights are packed: what is loaded is of one file, or it is stock's to load."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.drawing.draft import Draft
from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, SourceChangedError, create_session, inspect
from ort_qdq_plugin.load import pack as pack_stage
from ort_qdq_plugin.packing import pack as packing_module
from tests.support import added_provider, made_report, quiet, save, stack

CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda path: os.utime(path, ns=(5, 5)),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 4),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("make", [quiet, added_provider])
@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", ["model.onnx", "model.data"])
def test_a_file_that_changes_while_it_is_packed(
    tmp_path: Path, name: str, how: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its N-major weight is used in place, its K-major one is packed: neither may be of another file than the other."""
    draft = Draft("two layouts")
    value = draft.node("MatMul", [draft.input("x", ["m", 64]), draft.weight(Weight(k=64, n=64), "k_major")], "h")
    transposed = draft.node("Transpose", [draft.weight(Weight(k=64, n=64, n_major=True), "n_major")], "t", perm=[1, 0])
    draft.output(draft.node("MatMul", [value, transposed], "y"), ["m", 64])
    stored = save(draft.model(), tmp_path, "external")
    assert {entry.packed_bytes > 0 for entry in inspect(stored).fused} == {True, False}
    real = packing_module.pack

    def packing(*args: Any) -> None:
        real(*args)
        CHANGES[how](tmp_path / name)

    monkeypatch.setattr(pack_stage, "pack", packing)
    with pytest.raises(SourceChangedError, match=re.escape(name)):
        create_session(stored, make(), options=Options(strict=True))


def test_a_changed_file_is_loaded_by_stock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = save(stack(2, 128), tmp_path, "external")
    options = Options(progress=lambda done, total: os.utime(tmp_path / "model.data", ns=(5, 5)))
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        session = create_session(stored, quiet(), options=options)
    assert ["SourceChangedError" in record.getMessage() for record in caplog.records] == [True]
    assert made_report(session).route == "stock"
