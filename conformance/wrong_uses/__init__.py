"""Wrong uses of the calls, the variables and the commands, and what each of them is told."""
