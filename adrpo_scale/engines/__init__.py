"""Engines: how a model is sharded, and nothing else of it. One file a back-end."""
