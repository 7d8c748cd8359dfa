"""Models that real quantizers and simplifiers write, and what becomes of them: `python -m conformance.tools`.

`expected` is the table. `writers` has a script for each tool, `requirements` what it needs; `conformance.patterns.tools`
draws the same structures without the tools.
"""
