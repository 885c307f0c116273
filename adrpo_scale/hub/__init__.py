"""Models and datasets of the hub: needs, access, download, lock, prefetch, pickles, weights."""
