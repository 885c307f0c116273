"""Engines: how a model is sharded over processes. One file per sharding library."""
