"""Checkpoints: what is in one, how it is written and committed, which one a run resumes from."""
