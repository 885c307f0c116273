"""Algorithms: the credit of samples, the selection of rows to train on, and the loss."""
