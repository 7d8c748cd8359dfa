"""Whether the form that this package gives a product is the fastest one there is: `python -m conformance.choices`.

`forms` makes a product in every form, `cells` measures and compares them.
"""
