"""Models that refer to bytes of their own file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conformance.contracts.contract import Chapter, expect
from conformance.contracts.loading import (
    DIRECT_KEY,
    counted,
    elsewhere,
    inline_tensor,
    load,
    options_with,
    result_of,
    sum_model,
)

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


@CHAPTER.contract
def _models_may_refer_into_themselves(folder: Path) -> str:
    """An initializer's raw_data may become external data that points at the same bytes of the same .onnx file, or of the
    caller's bytes, with the same result: weights inside a model are never parsed (model/wire.py, model/skeleton.py)."""
    inline = sum_model(inline_tensor("w", counted()))
    path = folder / "model.onnx"
    path.write_bytes(inline)
    offset = inline.index(counted().tobytes())
    expected = result_of(load(inline))
    beside = folder / "rewritten.onnx"
    beside.write_bytes(sum_model(elsewhere("w", path.name, offset)))
    expect(np.array_equal(result_of(load(str(beside))), expected), "by path: other values")
    model = sum_model(elsewhere("w", "any/name", offset))
    options = options_with(**{DIRECT_KEY: "1"})
    options.add_external_initializers_from_files_in_memory(["any/name"], [inline], [len(inline)])
    expect(np.array_equal(result_of(load(model, options)), expected), "from bytes: other values")
    return "by path and from bytes, equal results"
