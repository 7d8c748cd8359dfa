"""What loading and running takes, measured. Each table is a command: `python -m benchmarks.load`, `.layout`, `.startup`,
`.first_load`, `.cached_load`, `.memory_limit`, `.genai`.

- `ways`: the ways of loading that tables compare, other checkouts of this package among them (`--against PATH`); they are
  measured by `ort_qdq_plugin.cli.measure`, as by `ort-qdq bench`
- `with_...`: what loads a model where that is neither this package nor a plain session of ONNX Runtime
- `results`: medians, ratios and targets
- `big_models`: the one writer of models of any size; `layouts`: what it writes for the layout table
- `small_models`: drawn with `conformance.drawing`
"""

import os

# Before anything imports ONNX Runtime: its telemetry would count sessions that are no use of it, and takes time.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
