"""Execution providers: which ones a session will have, and which of them take fused nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.ort.hook import available_providers
from ort_qdq_plugin.report import StockReason

__all__ = ["check_providers", "provider_names"]

# Execution providers that run MatMulNBits and do not want the QDQ form themselves. Azure's runs no ordinary node.
_TAKES_FUSED = {f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Dml", "WebGpu", "Azure")}


def provider_names(providers: Any, session_options: Any | None) -> tuple[str, ...]:
    """The providers that a session will have: those it is given, those added to its options, or ONNX Runtime's defaults.

    Raises:
        LeaveToStock: The names of those added to its options cannot be read.
    """
    if providers:
        return tuple(provider if isinstance(provider, str) else provider[0] for provider in providers)
    if session_options is not None and session_options.has_providers():
        from ort_qdq_plugin.ort.copies import added_providers

        return added_providers(session_options)
    return available_providers()


def check_providers(names: Iterable[str]) -> None:
    """Raise LeaveToStock if one of a session's providers does not take fused nodes."""
    for name in names:
        if name not in _TAKES_FUSED:
            raise LeaveToStock(StockReason.PROVIDER, name)
