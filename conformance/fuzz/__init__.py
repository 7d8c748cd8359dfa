"""Models that nobody trusts, made by mutating good ones: `python -m conformance.fuzz`."""

from __future__ import annotations

__all__: list[str] = []
