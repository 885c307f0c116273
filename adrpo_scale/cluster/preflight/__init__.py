"""Checks of a job before it loads a model: nodes, folders, versions, GPUs and the network."""
