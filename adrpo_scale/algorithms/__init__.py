"""Algorithms: what a sample is worth (credit), which rows are trained on (select), the loss."""
