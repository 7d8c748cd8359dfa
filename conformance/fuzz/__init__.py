"""Models that nobody trusts, made by mutating good ones: `python -m conformance.fuzz`.

`mutate` mutates one of the `seeds`; `judge` has it loaded by a `worker` of ours and by one of stock's, and compares them.
`coverage` mutates on as long as it reaches something new.
"""
