"""Execution providers: which ones a session will have, and which of them take fused nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnxruntime

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.ort.hook import available_providers
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["CPU", "ON_CPU", "TAKES_FUSED", "check_providers", "has_only_added", "may_dequantize_once", "provider_names"]

CPU = "CPUExecutionProvider"

ON_CPU = frozenset({CPU, "AzureExecutionProvider"})
"""Providers whose sessions run every node on the CPU. Azure's runs no ordinary node."""

TAKES_FUSED = ON_CPU | frozenset({
    "CUDAExecutionProvider", "DmlExecutionProvider", "OpenVINOExecutionProvider",
    "WebGpuExecutionProvider", "ggml",
})  # fmt: skip
"""Execution providers that run MatMulNBits, or leave it to the CPU provider, and do not want the QDQ form themselves.

The table in docs/platforms.md has what each takes, and how it was tried."""


# Those that claim nodes which they cannot run, once the weights of these are floats: ggml takes convolutions in two
# dimensions, and then has no kernel for them (onnxruntime-ggml 0.2.0). Behind a DequantizeLinear it claims none.
_FAILS_ON_FLOATS = frozenset({"ggml"})


def has_only_added(providers: Any, session_options: Any | None) -> bool:
    """Whether a session will have the providers that were added to its options, in whichever way."""
    return not providers and session_options is not None and bool(session_options.has_providers())


def provider_names(providers: Any, session_options: Any | None) -> tuple[str, ...]:
    """The providers that a session will have: those it is given, or those added to its options, or the CPU provider alone.

    ONNX Runtime gives a session that names none no other, whatever is compiled in or registered.

    Raises:
        LeaveToStock: The names of those added to its options cannot be had.
    """
    if providers:
        # ONNX Runtime warns of those that it knows, but was built without, and leaves them out.
        lacking = set(onnxruntime.get_all_providers()).difference(available_providers())
        return tuple(name for name in map(_name, providers) if name not in lacking) or (CPU,)
    if has_only_added(providers, session_options):
        with fork_lock:
            from ort_qdq_plugin.ort.copies import added_providers
        return added_providers(session_options)
    return (CPU,)


def check_providers(names: Iterable[str]) -> None:
    """Raise LeaveToStock if one of a session's providers is not known to take fused nodes."""
    for name in names:
        # OpenVINO's plugin has a provider for each way to use its devices: OpenVINOExecutionProvider.AUTO is one.
        if name.partition(".")[0] not in TAKES_FUSED:
            raise LeaveToStock(StockReason.PROVIDER, name)


def may_dequantize_once(names: Iterable[str]) -> bool:
    """Whether a session's providers take weights of floats in place of DequantizeLinear nodes that stay."""
    return _FAILS_ON_FLOATS.isdisjoint(names)


def _name(provider: Any) -> str:
    """Of a provider as it is given. ONNX Runtime has an error for what is no such thing."""
    return str(provider[0] if isinstance(provider, tuple) and provider else provider)
