"""Before and beside a run: plan, preflight, status."""
