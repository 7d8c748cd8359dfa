"""Lookups in quantized tables, as tests of fusion draw and decide them."""

from collections.abc import Callable, Sequence
from typing import Any

from conformance.drawing.draft import Draft
from conformance.drawing.elements import Dim
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from ort_qdq_plugin.fusion.gather import fuse
from ort_qdq_plugin.fusion.kind import Fusion
from ort_qdq_plugin.fusion.lookups import Lookup, scales_of
from ort_qdq_plugin.fusion.view import View
from tests.fusion.support import SETTINGS, locate, read, scope_and_site

__all__ = ["SCALES", "fused", "gather_of", "lookup_of"]

SCALES: dict[str, dict[str, Any]] = {
    "one": {"block": PER_TENSOR}, "rows": {"axis": 0, "block": PER_CHANNEL},
    "columns": {"axis": 1, "block": PER_CHANNEL}, "blocks": {"axis": 1, "block": 32},
}  # fmt: skip


def gather_of(
    shape: Sequence[int] = (50, 64),
    inputs: Sequence[str] = ("w_d", "i"),
    *,
    indices: Sequence[Dim] = (2, 3),
    outputs: int = 1,
    gather_axis: int | None = None,
    opset: int = 21,
    **table: Any,
) -> Draft:
    """A Gather of rows of a table."""
    draft = Draft("gather", opset=opset)
    draft.dequantize("w", shape, **{"axis": 1, "block": 32, **table})
    draft.input("i", indices, "int64")
    draft.node("Gather", inputs, "y", axis=gather_axis)
    if not outputs:
        del draft.nodes[-1].output[:]
    return draft


def fused(draft: Draft, seen: Callable[[View], View] = lambda view: view) -> Fusion:
    """What becomes of the Gather, which may see the table otherwise than it is."""
    scope, site = scope_and_site(draft)
    found = read(scope)
    return fuse(site, found, seen(found.view), SETTINGS, locate)


def lookup_of(draft: Draft, **changed: Any) -> Lookup:
    """The Gather as a lookup of its table, with what is given otherwise."""
    scope, site = scope_and_site(draft)
    table = read(scope)
    indices = scope.stated_shape("i")
    rank = None if indices is None else len(indices)
    return Lookup(site, table, scales_of(table), "i", rank, table.output_type, scope.opset)._replace(**changed)
