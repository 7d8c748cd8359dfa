"""Every way of writing a quantized weight that is known of, and what becomes of each: `python -m conformance.patterns`.

`catalogue` has all patterns. The modules beside it draw them, one subject each; `table` runs and judges them.
"""

from __future__ import annotations

__all__: list[str] = []
