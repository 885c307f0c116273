"""A sweep beside its runs: what it costs, working through it, its state."""
