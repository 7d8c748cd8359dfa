"""What a kind of fusion is: a module of this folder with a function `fuse`, which rows of `model.operators` name.

Matching calls `fuse` for every reader of a dequantized weight whose operator is in such a row. With weights that are
multiplied by more than their scales (`Dequantized.factors`) it does so only where the module says ``TAKES_FACTORS = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from ort_qdq_plugin.fusion.constants import bytes_stored, stored_in
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.graph import NodeRef
from ort_qdq_plugin.model.operands import Operands, borrowed_bytes, packed_bytes
from ort_qdq_plugin.model.tensors import Locate, StoredTensor
from ort_qdq_plugin.report.weights import FusedWeight, Layout
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Fuse", "Fusion", "FusionSettings", "Site", "report_entry"]


class FusionSettings(NamedTuple):
    """The user's settings for fused nodes."""

    # For weights without blocks: a power of two from 16 to 256, 0 for ONNX Runtime's default of 32, or -1 for the one that
    # pads K least, as in ``session.qdq_matmulnbits_block_size``.
    block_size: int
    accuracy_level: int  # MatMulNBits' attribute, 0 to 4
    # Whether ONNX Runtime's integer kernels take int8 activations, as by ``session.qdqisint8allowed``.
    int8_activations: bool = False
    # Whether ONNX Runtime's kernels are those for ARM, which compute with other roundings than those for x86.
    arm: bool = False
    # Whether its MatMulNBits runs in float16 on this processor.
    float16: bool = True
    # The most bytes that the values of weights which are dequantized once may take together. It may take long to tell: it is
    # asked where there are such weights.
    once_bytes: Callable[[], int] = int


class Site(NamedTuple):
    """Where in a model a fusion takes place."""

    dequantize: str  # the DequantizeLinear, by its name or its output's
    kind: str  # the operator type of the node that reads the result
    name: str  # that node, by its name or its output's
    weight: str  # the name under which it reads the dequantized weight
    output: str  # the value that the fused node produces
    replaced: tuple[NodeRef, ...]  # the nodes that it replaces, in the order of the graph
    joined: tuple[str, ...] = ()  # names under which the first of these reads other weights that the fusion takes in as well
    form: str = ""  # the weight in words
    tensor: str = ""  # what is dequantized, by its name
    stored: tuple[StoredTensor, ...] = ()  # that, its scales and its zero points


class Fusion(Protocol):
    """A DequantizeLinear and one reader of it that become a fused node, and the cheap nodes that go before and after it."""

    @property
    def site(self) -> Site:
        """Where in the model."""

    @property
    def operator(self) -> str:
        """The type of the fused node."""

    @property
    def operands(self) -> Operands:
        """The constant inputs of the fused node."""

    def emit(self, emitter: NodeEmitter, operands: Mapping[str, str]) -> None:
        """Give `emitter` the fused node and those that go before and after it. `operands`: the names its operands got."""

    def entry(self) -> FusedWeight:
        """What the report says of it."""


Fuse = Callable[[Site, Dequantized, View, FusionSettings, Locate], Fusion]
"""``fuse(site, dequantized, view, settings, locate)``: fuse the reader at a site with what is dequantized, which the reader
sees as `view`. `locate` finds the bytes of other constants. Raises NotFusable where no fused operator can do it."""


def report_entry(
    fusion: Fusion,
    *,
    k: int,
    n: int,
    bits: int,
    block_size: int,
    layout: Layout,
    has_bias: bool = False,
    stored_bits: int | None = None,
) -> FusedWeight:
    """What the report says of a fusion; the arguments are those of FusedWeight. None: as many bits as the fused node has."""
    site, operands = fusion.site, fusion.operands.values()
    sources = [*site.stored, *(operand.source for operand in operands if operand.source is not None)]
    return FusedWeight(
        node=site.name,
        dequantize=site.dequantize,
        kind=site.kind,
        k=k,
        n=n,
        bits=bits,
        block_size=block_size,
        layout=layout,
        packed_bytes=packed_bytes(operands),
        borrowed_bytes=borrowed_bytes(operands),
        stored_bytes=bytes_stored(tensor for source in sources for tensor in stored_in(source)),
        has_bias=has_bias,
        stored_bits=bits if stored_bits is None else stored_bits,
        form=site.form,
        weight=site.tensor,
    )
