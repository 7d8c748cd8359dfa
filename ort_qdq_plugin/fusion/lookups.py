"""Lookups in quantized tables: the exact forms that there are, which of them a table gets, and why.

`CHOICES` is the whole rule. It follows from what the forms cost (``python -m conformance.choices_lookup``), and depends on
nothing but what a model says of itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.kind import Site
from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16
from ort_qdq_plugin.model.graph import NodeRef
from ort_qdq_plugin.model.shapes import Shape
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "CHOICES",
    "MANY",
    "MAX_COPY",
    "Choice",
    "Form",
    "Lookup",
    "Scales",
    "Squeezed",
    "choice_for",
    "is_small",
    "scales_of",
    "shape_in_rows",
]

MANY = 4096
"""Indices that a run may have where the model does not say how many: the tokens of a long prompt, or of a batch."""

_MANY_MATRICES = 8
"""The same of a table of matrices: the experts of a few tokens. More of them would be multiplied all at once."""

_MATRICES = 3  # the rank of a table of them

_UNNOTICED = 2000  # nanoseconds: what a run may take longer before anybody notices


class Scales(Enum):
    """What of a table shares a scale."""

    ONE = "the whole table"
    ROWS = "a row: what has the same index of the first axis"
    COLUMNS = "what has the same index of a later axis"
    BLOCKS = "a block along a later axis"


class Form(Enum):
    """What a lookup becomes. Each is exact: the same arithmetic as the DequantizeLinear's, of the same numbers."""

    QUANTIZED = "GatherBlockQuantized"
    DEQUANTIZED = "Gather on the integers, scales and zero points; then DequantizeLinear on what was gathered"
    SCALED = "Gather on the integers and scales; then Cast and Mul. There are no zero points"
    SHIFTED = "Gather on the integers, scales and zero points; then Cast, Sub and Mul"


class Choice(NamedTuple):
    """What tables of one kind become: the first of the forms that takes a table and does not copy too much of it.

    Costs are nanoseconds of one thread in cache (ONNX Runtime 1.32.0, AVX-512): they are compared with each other alone.
    """

    forms: tuple[Form, ...]
    whole: float  # for an element of the table, when the whole of it is dequantized
    row: float  # for a row that is looked up
    looked_up: float  # for an element of such a row, beyond what copying a float takes


# - DequantizeLinear is fast on bytes with a single float scale, or with one for each index of the first axis: 0.13 ns for
#   an element. In blocks, for other axes, on smaller elements and with float16 scales it takes 0.8 to 5 ns.
# - GatherBlockQuantized takes 110 ns for each row of bytes, 220 for one of smaller elements, and 0.2 ns for each element, on
#   elements of type uint8 (two or four of them in a byte, if they are smaller). On int4 and uint4 it takes 2.3 ns.
# - Cast and Mul take 0.4 ns, Cast, Sub and Mul 0.8 ns. They write floats two or three times: where those leave the cache,
#   they take twice as long.
# - Gather takes no elements of less than a byte.
# - A product with matrices that are looked up stays a product of floats, unless `chosen` takes it. MatMulNBits on bytes that
#   were looked up has nothing to pre-pack: it dequantizes them at every accuracy level, and takes 1.4 (128 rows) to 4 times
#   as long (one row).
_BYTES = (Form.QUANTIZED, Form.SCALED, Form.SHIFTED)
_MULTIPLIED = (Form.SCALED, Form.SHIFTED)
_QUANTIZED = (Form.QUANTIZED,)
CHOICES: dict[tuple[int, bool, Scales], Choice] = {
    # The type of the scales, whether elements are bytes, and what shares a scale.
    (FLOAT, True, Scales.ONE): Choice((Form.DEQUANTIZED, *_BYTES), whole=0.13, row=0, looked_up=0.08),
    (FLOAT, True, Scales.ROWS): Choice((Form.DEQUANTIZED, *_BYTES), whole=0.13, row=110, looked_up=0.05),
    (FLOAT, True, Scales.COLUMNS): Choice(_MULTIPLIED, whole=1.4, row=0, looked_up=0.8),
    (FLOAT, True, Scales.BLOCKS): Choice((Form.QUANTIZED, Form.DEQUANTIZED), whole=1.05, row=110, looked_up=0.1),
    (FLOAT, False, Scales.ONE): Choice(_QUANTIZED, whole=0.85, row=220, looked_up=0.1),
    (FLOAT, False, Scales.ROWS): Choice(_QUANTIZED, whole=0.85, row=220, looked_up=0.1),
    (FLOAT, False, Scales.BLOCKS): Choice(_QUANTIZED, whole=1.5, row=220, looked_up=0.2),
    (FLOAT16, True, Scales.ONE): Choice(_BYTES, whole=1.7, row=110, looked_up=0.1),
    (FLOAT16, True, Scales.ROWS): Choice(_BYTES, whole=1.7, row=110, looked_up=0.1),
    (FLOAT16, True, Scales.COLUMNS): Choice(_MULTIPLIED, whole=2.5, row=0, looked_up=1.0),
    (FLOAT16, True, Scales.BLOCKS): Choice((Form.QUANTIZED, Form.DEQUANTIZED), whole=2.6, row=110, looked_up=0.15),
    (FLOAT16, False, Scales.ONE): Choice(_QUANTIZED, whole=2.6, row=220, looked_up=0.1),
    (FLOAT16, False, Scales.ROWS): Choice(_QUANTIZED, whole=2.6, row=220, looked_up=0.1),
    (FLOAT16, False, Scales.BLOCKS): Choice(_QUANTIZED, whole=4.5, row=220, looked_up=0.25),
}

MAX_COPY = 64 << 20
"""Bytes of a table that are copied although another form would take them where they are stored. GatherBlockQuantized wants
signed elements with their top bits flipped; this is what makes it up to twice as fast as the others with many indices."""


class Squeezed(NamedTuple):
    """A Squeeze of axes of indices."""

    node_ref: NodeRef
    axes: str  # their name
    lost: int  # how many axes these are


class Lookup(NamedTuple):
    """A Gather along the first axis of a dequantized table."""

    site: Site
    table: Dequantized
    scales: Scales
    indices: str  # their name
    indices_rank: int | None  # None if the model does not say it
    data_type: int  # the TensorProto.DataType of the result: the table's, or another one that it is cast to
    opset: int
    is_swapped: bool = False  # whether the last two axes of what is looked up are exchanged
    squeezed: Squeezed | None = None  # the Squeeze that alone reads what is looked up, if there is one

    @property
    def has_zero_points(self) -> bool:
        """Whether any zero point may be other than 0."""
        is_zero = self.table.centred and ELEMENTS[self.table.weight.data_type].weight == "signed"
        return self.table.zero_points is not None and not is_zero

    @property
    def row_length(self) -> int:
        """Elements that one index gives."""
        return math.prod(self.table.weight.shape[1:])

    def casts(self, computed: int) -> list[int]:
        """The types to cast to, one after another, what is computed in this type: what the model rounds is rounded."""
        types = (computed, self.table.output_type, self.data_type)
        return [to for before, to in pairwise(types) if to != before]


def scales_of(table: Dequantized) -> Scales:
    """What of a table shares a scale; raises NotFusable for blocks of rows."""
    axis, shape = table.axis, table.weight.shape
    if axis is None:
        return Scales.ONE
    if axis == 0:
        if table.block:
            raise NotFusable(Reason.GATHER)
        return Scales.ROWS
    if not table.block:
        return Scales.COLUMNS
    # A block that is as long as a row is the row.
    return Scales.ROWS if table.block >= shape[axis] and len(shape) == 2 else Scales.BLOCKS


def shape_in_rows(table: Dequantized) -> tuple[int, ...]:
    """A table's shape, with the axis of its blocks last where it is the one before: as it would be stored in rows."""
    shape = table.weight.shape
    rank = len(shape)
    is_in_columns = rank >= _MATRICES and table.block > 0 and table.axis == rank - 2
    return (*shape[:-2], shape[-1], shape[-2]) if is_in_columns else shape


def choice_for(table: Dequantized, scales: Scales) -> Choice:
    """The choice for a table; raises NotFusable if there is none."""
    choice = CHOICES.get((table.scales.data_type, table.bits == 8, scales))
    if choice is None:
        raise NotFusable(Reason.GATHER)
    return choice


def is_small(shape: Sequence[int], choice: Choice, indices: Shape | None) -> bool:
    """Whether a table has so few rows that dequantizing all of them may take less time than dequantizing what is looked up.

    `shape` is the table's (`shape_in_rows`), `indices` that of the indices, as far as it is known.
    """
    known = [size for size in indices or (None,) if size is not None]
    many = MANY if len(shape) < _MATRICES else _MANY_MATRICES
    count = math.prod(known) if indices is not None and len(known) == len(indices) else many
    rows, length = math.prod(shape[1:-1]), math.prod(shape[1:])
    return count * (rows * choice.row + length * choice.looked_up) - shape[0] * length * choice.whole > _UNNOTICED
