"""What a kind of fusion is. Each kind is one module; a new operator to fuse into is another one, and a line in match.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ort_qdq_plugin.fusion.emit import NodeEmitter
from ort_qdq_plugin.model.graph import NodeRef
from ort_qdq_plugin.model.operands import Operands
from ort_qdq_plugin.report import FusedWeight

__all__ = ["Fusion", "FusionSettings", "Site"]


class FusionSettings(NamedTuple):
    """What is asked of fused nodes.

    Attributes:
        block_size: For weights without blocks: a power of two from 16 to 256, 0 for ONNX Runtime's default of 32, or -1 for
            the one that pads K least, as in ``session.qdq_matmulnbits_block_size``.
        accuracy_level: MatMulNBits' attribute, 0 to 4.
    """

    block_size: int
    accuracy_level: int


class Site(NamedTuple):
    """Where in a model a fusion takes place.

    Attributes:
        dequantize: The DequantizeLinear, by its name or its output's.
        kind: The operator type of the node that reads the result.
        name: That node, by its name or its output's.
        weight: The name under which it reads the dequantized weight.
        output: The value that the fused node produces.
        replaced: The nodes that it replaces, in the order of the graph.
    """

    dequantize: str
    kind: str
    name: str
    weight: str
    output: str
    replaced: tuple[NodeRef, ...]


class Fusion(Protocol):
    """A DequantizeLinear and one reader of it that become a fused node, with the cheap nodes that it may need around it."""

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
        """Add the fused node, and what it needs around it, to the chain. `operands`: the names that its operands got."""

    def entry(self) -> FusedWeight:
        """What the report says of it."""
