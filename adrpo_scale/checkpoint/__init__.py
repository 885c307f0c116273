"""Checkpoints: their content, their writing and commit, and the choice of one to resume from."""
