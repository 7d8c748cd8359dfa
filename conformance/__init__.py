"""What others can check this package by. Each of these is one subject, and one command: `python -m conformance.<name>`.

- `patterns`: every way of writing a quantized weight, and what becomes of it
- `tools`: models that real quantizers and simplifiers write
- `programs`: unmodified programs, with and without the variable
- `choices`: the form that a product gets, against all others
- `choices_lookup`: whether the form that a lookup in a quantized table takes is the fastest
- `choices_conv`: whether a convolution is faster as a product, or with its weight dequantized once
- `choices_forms`: whether a weight is as fast in other forms as behind a plain DequantizeLinear
- `claims`: what the report says of each weight, against the graph that ONNX Runtime's optimizer makes
- `backend`: the models of ONNX's backend tests, handed over unchanged
- `contracts`: what is relied on in ONNX Runtime
- `faults`: full disks, limits, signals and files that change while a model is loaded
- `fuzz`: models that nobody trusts
- `cache`: many processes with one cache, killed and damaged
- `cache_soak`: one cache in use by many, while models are replaced and processes are killed
- `interrupts`: loads that a signal interrupts at any moment
- `soak`: thousands of sessions, none of which may leave anything behind

`drawing` has what they write their models with. What loading takes is measured in the folder `benchmarks`.
"""

import os

# Before anything imports ONNX Runtime: its telemetry would count sessions that are no use of it, and takes time.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
