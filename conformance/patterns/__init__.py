"""Every way of writing a quantized weight that is known of, and what becomes of each: `python -m conformance.patterns`.

`catalogue` has all patterns; the modules that it imports draw them. `judging` runs and judges them.
"""
