"""What others can check this package by. Each folder is one subject, and one command: `python -m conformance.<folder>`.

- `patterns`: every way of writing a quantized weight, and what becomes of it
- `faults`: full disks, limits, signals and files that change while a model is loaded
- `contracts`: what is relied on in ONNX Runtime
- `tables`: what loading and running takes, measured (`conformance.tables.load`, `.layout`, `.startup`,
  `.first_load`, `.cached_load`, `.genai`)
- `fuzz`: models that nobody trusts
- `soak` (a module): thousands of sessions, none of which may leave anything behind

`drawing` has what they write their models with; `sessions`, `process` and `markdown` are small things that they share.
"""

from __future__ import annotations

__all__: list[str] = []
