"""Checkpoint → folders that diffusers, transformers and peft load, verified and described."""
