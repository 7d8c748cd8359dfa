"""Constants that are computed from others: which numbers they are, a box of them at a time. No graph, and no memory kept."""
