"""One load, a file for each stage, in the order in which a model passes through them."""
