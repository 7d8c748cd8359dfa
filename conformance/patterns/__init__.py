"""Every way of writing a quantized weight that is known of, and what becomes of each: `python -m conformance.patterns`.

`catalogue` has all patterns; the modules that it lists draw them, one subject each. `running` runs a pattern in every
way, `judging` compares what came of it with what the pattern expects.
"""
