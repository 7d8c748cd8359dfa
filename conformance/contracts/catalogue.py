"""All contracts."""

from __future__ import annotations

from conformance.contracts import buffers, kernels, options, paths, references, sessions
from conformance.contracts.contract import Contract

__all__ = ["CONTRACTS"]

CONTRACTS: tuple[Contract, ...] = tuple(
    contract for module in (buffers, references, options, paths, sessions, kernels) for contract in module.CHAPTER.contracts
)
