"""Every way of writing a quantized weight that is known of, and what becomes of each: `python -m conformance.patterns`.

`catalogue` has all patterns; the modules that it lists draw them, one subject each. `judging` runs a pattern in every way,
and compares what came of it with what the pattern expects.
"""
