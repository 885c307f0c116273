"""What is read from the hub: needs, access, download, lock, prefetch, pickles, weights."""
