"""What a job checks before it loads a model: nodes, folders, versions, GPUs and the network."""
