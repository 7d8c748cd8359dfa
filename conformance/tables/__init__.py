"""What loading takes, measured: `python -m conformance.tables.load`, `.layout`, `.startup`, `.first_load`, `.cached_load`,
`.genai`.

Each of these six is a table and a command. The other modules are what they share: the large models that are written for
them, processes that load one and measure it, and the report of what was found.
"""

from __future__ import annotations

__all__: list[str] = []
